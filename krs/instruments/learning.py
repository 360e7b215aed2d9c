"""A few steps of fine-tuning on a copy: what instruments that relearn have in common."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import nn

from krs.generation.batching import neighbours_matter
from krs.generation.forward import accepted, device_of
from krs.hooks.adapters import changeable_copy
from krs.hooks.context import plain_calls
from krs.instruments.case import Asked
from krs.progress import bar
from krs.prompts import TokenBatch

_ROWS = 4
OPEN = 0.05
"""Nats a token below which an answer is given openly: there is nothing to recover."""


def steps(model: nn.Module, asked: Asked, n: int, learning_rate: float) -> Iterator[nn.Module]:
    """A copy of a model, in fp32 or better, before the first step and after each of `n` steps on these facts.

    Each step is on all of them: AdamW, no weight decay, the mean loss over answer tokens. Dropout is off. The copy is
    the same object each time. Facts share a forward, unless what one gives depends on the others beside it.
    """
    student = changeable_copy(model, "relearning")
    for parameter in student.parameters():
        if parameter.dtype in (torch.bfloat16, torch.float16):
            parameter.data = parameter.data.float()
        parameter.requires_grad_(parameter.is_floating_point())
    student.eval()
    trained = [p for p in student.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=0.0)
    alone = asked.batch.alone or neighbours_matter(student, asked.batch.tokens)
    yield student
    with bar(n, "relearning", show=False) as done:
        for _ in range(n):
            _step(student, optimiser, asked.batch, 1 if alone else _ROWS)
            done.update()
            yield student


def _step(student: nn.Module, optimiser: torch.optim.Optimizer, batch: TokenBatch, rows: int) -> None:
    total = sum(map(len, batch.targets))
    with torch.enable_grad(), plain_calls(student):
        for start in range(0, len(batch), rows):
            part = batch.rows(start, min(start + rows, len(batch)))
            inputs = part.inputs(device_of(student))
            logits = student(**accepted(student, inputs), use_cache=False).logits
            (_nll_sum(logits, part) / total).backward()
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)


def _nll_sum(logits: torch.Tensor, part: TokenBatch) -> torch.Tensor:
    """Of the answer tokens, from the logits at the positions that predict them."""
    picked = torch.cat([logits[i, list(positions)] for i, positions in enumerate(part.scored)])
    targets = torch.tensor([t for row in part.targets for t in row], device=picked.device)
    return torch.nn.functional.cross_entropy(
        picked.to(torch.promote_types(picked.dtype, torch.float32)), targets, reduction="sum"
    )


def halves(n: int, seed: int) -> tuple[Sequence[int], Sequence[int]]:
    """Two halves of `n` facts, drawn."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed)).tolist()
    return sorted(order[: n // 2]), sorted(order[n // 2 :])
