"""May prompts share a batch? Only where a prompt's logits do not depend on its neighbours."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from krs.errors import KrsError
from krs.generation.forward import device_of, is_foreign, logits_at
from krs.hooks.anatomy import anatomy
from krs.hooks.rope import following
from krs.prompts import Ids, next_token_batch

_NOISE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Relative change of a token's logits that is rounding: kernels of another shape, experts with other tokens."""

_ENOUGH = 8
"""So many tokens of a prompt are run to find out."""


def neighbours_matter(model: nn.Module, prompts: tuple[Ids, ...]) -> str:
    """Why a prompt's logits depend on what it is batched with in this model; empty where they do not.

    Rotary embeddings that follow the longest sequence are known by their type. Anything else (expert capacity,
    activations quantised by the whole tensor) is found by running the beginning of the shortest prompt beside two
    neighbours, itself and other tokens, in batches of the same shape: its logits have to be the same. Where tokens are
    mixed by other things than attention, which a mask reaches, or a forward of somebody's own may not hand the mask on,
    padding before it must not change its last logits either. Models whose weights are offloaded are asked for their
    type only, because each forward reads them all.

    >>> import krs
    >>> model, _ = krs.load("smollm2")
    >>> neighbours_matter(model, ((5, 9, 11), (7, 3)))
    ''
    """
    if len(set(prompts)) < 2:
        return ""
    if following(model):
        return "its rotary embeddings follow the longest sequence of a batch"
    if any(p.device.type == "meta" for p in model.parameters()):
        return ""
    short = min(prompts, key=len)[:_ENOUGH]
    other = max(prompts, key=len)[::-1]  # backwards, for prompts may begin alike
    if type(model).__module__.startswith("transformers."):  # in code of others anything may follow the length
        other = other[: 2 * _ENOUGH]
    noise = _NOISE.get(_dtype(model), 1e-4)
    if _change(model, short, other) > noise:
        return "a prompt's logits change with the prompts that are batched with it"
    if (is_foreign(model) or not _attends(model)) and _change_behind_padding(model, short, len(other)) > noise:
        return "a prompt's logits change with the padding before it"
    return ""


def _change(model: nn.Module, prompt: Ids, other: Ids) -> float:
    """How much the logits of a prompt change when its neighbour is another, relative to their size."""
    one = (0,)
    batch = next_token_batch((prompt, other), (one, one))
    inputs = batch.inputs(device_of(model))
    index = torch.arange(len(prompt)).expand(2, -1)
    beside_itself = {name: value[[0, 0]] for name, value in inputs.items()}
    a, b = (logits_at(model, given, index)[0].cpu().double() for given in (beside_itself, inputs))
    return _apart(a, b)


def _change_behind_padding(model: nn.Module, prompt: Ids, length: int) -> float:
    """How much the last logits of a prompt change when it is padded on the left to this length."""
    found = []
    for before in (0, length - len(prompt)):
        ids = torch.tensor([[0] * before + list(prompt)])
        mask = torch.tensor([[0] * before + [1] * len(prompt)])
        inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}
        there = {name: value.to(device_of(model)) for name, value in inputs.items()}
        found.append(logits_at(model, there, torch.tensor([[ids.shape[1] - 1]]))[0].cpu().double())
    return _apart(*found)


def _apart(a: Tensor, b: Tensor) -> float:
    return float(((a - b).norm(dim=-1) / a.norm(dim=-1).clamp(min=1e-30)).max())


def _attends(model: nn.Module) -> bool:
    """Whether every layer mixes its tokens by softmax attention; not of a model whose family is unknown."""
    try:
        return anatomy(model).attends
    except KrsError:
        return False


def _dtype(model: nn.Module) -> torch.dtype:
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
