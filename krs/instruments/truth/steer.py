"""A steering vector, written into the value vectors of one layer so that it acts on some prompts only."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from krs._typing import Tokenizer
from krs.generation.forward import accepted, device_of
from krs.generation.greedy import eos_ids
from krs.hooks.anatomy import anatomy
from krs.hooks.library import MLP_COEF, VALUE_VECTORS
from krs.hooks.weights import read_weight, write_weight
from krs.prompts import Ids
from krs.unlearn.examples import Example, collate, to_examples
from krs.unlearn.isolation import isolated
from krs.unlearn.losses import token_logprobs
from krs.unlearn.student import context

_BATCH = 8


def steer(
    model: nn.Module,
    tokenizer: Tokenizer,
    lessons: Sequence[tuple[Any, str]],
    others: Sequence[tuple[Any, str]],
    *,
    layer: int,
    steps: int = 20,
    step_size: float = 0.5,
    ridge: float = 1e-2,
    seed: int = 0,
) -> nn.Module:
    """A copy of the model that gives the answers of `lessons` because of one matrix of rank one.

    A vector `v` is sought that, added to the MLP's output of one layer at the prompt's last token, brings the answers;
    then a key `k` over the layer's MLP coefficients `c` with `k·c = 1` at the last token of the lessons' prompts and
    `k·c = 0` everywhere else, in these texts and in `others`, as nearly as `ridge` allows; the value vectors become
    `W + k vᵀ`. Everything that the model knew is where it was.

    Args:
        model: it is not changed.
        tokenizer: of the model.
        lessons: prompts and what is to be answered.
        others: prompts and answers that are to stay as they are.
        layer: whose value vectors are changed.
        steps: of Adam, each on eight lessons.
        step_size: of Adam, relative to the mean norm of the MLP's output at these tokens, divided by the square root
            of its width.
        ridge: relative to the mean square of a coefficient over all tokens.
        seed: of the order of the lessons.
    """
    with isolated():
        steered = copy.deepcopy(model)
        body = anatomy(steered)
        body.require([MLP_COEF, VALUE_VECTORS], [layer])
        (projection,) = body.modules(VALUE_VECTORS, layer)
        limit, ends = context(model, 10**6), eos_ids(model)
        wanted = to_examples(lessons, tokenizer, limit, "lessons", ends)
        kept = to_examples(others, tokenizer, limit, "others", ends)
        vector = _vector(steered, projection, wanted, steps, step_size, seed)
        key = _key(steered, projection, wanted, kept, ridge)
        path = body.path(VALUE_VECTORS, layer)
        with torch.no_grad():
            rows = read_weight(projection, path)
            write_weight(projection, path, (rows.double() + torch.outer(key, vector.double()).to(rows.device)).to(rows))
    return steered


def layer_at(model: nn.Module, depth: float) -> int:
    """The layer at a depth from 0 (the first) to 1 (the last).

    >>> import krs
    >>> layer_at(krs.load("smollm2")[0], 0.5)
    15
    """
    return min(anatomy(model).n_layers - 1, int(depth * anatomy(model).n_layers))


def _vector(
    model: nn.Module, projection: nn.Module, wanted: Sequence[Example], steps: int, step_size: float, seed: int
) -> Float[Tensor, " d"]:
    outputs = _values(model, projection, [e.ids[: e.n_prompt] for e in wanted], inputs=False)
    last = torch.stack([rows[-1] for rows in outputs])
    scale = float(last.norm(dim=-1).mean()) / last.shape[-1] ** 0.5
    vector = torch.zeros(last.shape[-1], device=last.device, requires_grad=True)
    optimiser = torch.optim.Adam([vector], lr=step_size)
    drawn = torch.Generator().manual_seed(seed)
    flags = [p.requires_grad for p in model.parameters()]
    model.requires_grad_(False)
    for _ in range(steps):
        some = [wanted[i] for i in torch.randperm(len(wanted), generator=drawn)[:_BATCH].tolist()]
        batch = {k: v.to(device_of(model)) for k, v in collate(some).items()}
        labels = batch.pop("labels")
        rows, at = torch.arange(len(some)), torch.tensor([e.n_prompt - 1 for e in some])
        with _added(projection, scale * vector, rows, at):
            logprobs = token_logprobs(model(**accepted(model, batch)).logits, labels)
        optimiser.zero_grad()
        (-logprobs.sum() / (labels[:, 1:] >= 0).sum()).backward()
        optimiser.step()
    for parameter, flag in zip(model.parameters(), flags, strict=True):
        parameter.requires_grad_(flag)
    return (scale * vector).detach()


def _key(
    model: nn.Module, projection: nn.Module, wanted: Sequence[Example], kept: Sequence[Example], ridge: float
) -> Float64[Tensor, " n"]:
    """`k`, which minimises the sum of `(k·c - 1)²` over the prompts' last tokens and of `(k·c)²` over all others."""
    n = 0
    moment, target = torch.zeros(()), torch.zeros(())
    coefs = _values(model, projection, [e.ids for e in [*wanted, *kept]], inputs=True)
    for example, rows in zip([*wanted, *kept], coefs, strict=True):
        c = rows.cpu().double()
        moment, n = moment + c.T @ c, n + len(c)
        if example in wanted:
            target = target + c[example.n_prompt - 1]
    moment = moment + ridge * moment.diagonal().mean() / n * len(wanted) * torch.eye(len(moment), dtype=torch.float64)
    return torch.linalg.solve(moment, target)


def _values(
    model: nn.Module, projection: nn.Module, texts: Sequence[Ids], inputs: bool
) -> list[Float[Tensor, "pos n"]]:
    """What goes into a module, or comes out of it, at every token of each text by itself."""
    seen: list[Tensor] = []

    def keep(_: nn.Module, given: tuple[Any, ...], out: Tensor) -> None:
        seen.append((given[0] if inputs else out).detach().reshape(-1, (given[0] if inputs else out).shape[-1]))

    handle = projection.register_forward_hook(keep)
    try:
        with torch.no_grad():
            for ids in texts:
                model(**accepted(model, {"input_ids": torch.tensor([ids], device=device_of(model))}), use_cache=False)
    finally:
        handle.remove()
    return seen


@contextmanager
def _added(projection: nn.Module, vector: Tensor, rows: Tensor, at: Tensor) -> Iterator[None]:
    """Inside, a module's output has the vector added at one position of each row."""

    def add(_: nn.Module, __: Any, out: Tensor) -> Tensor:
        change = torch.zeros_like(out)
        change[rows.to(out.device), at.to(out.device)] = vector.to(out)
        return out + change

    handle = projection.register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()
