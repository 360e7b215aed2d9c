"""May prompts share a batch? Only where a prompt's logits do not depend on its neighbours."""

from __future__ import annotations

import torch
from torch import nn

from krs.generation.forward import device_of, logits_at
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
    neighbours, itself and other tokens, in batches of the same shape: its logits have to be the same. Models whose
    weights are offloaded are asked for their type only, because each forward reads them all.

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
    if _change(model, short, other) > _NOISE.get(_dtype(model), 1e-4):
        return "a prompt's logits change with the prompts that are batched with it"
    return ""


def _change(model: nn.Module, prompt: Ids, other: Ids) -> float:
    """How much the logits of a prompt change when its neighbour is another, relative to their size."""
    one = (0,)
    batch = next_token_batch((prompt, other), (one, one))
    inputs = batch.inputs(device_of(model))
    index = torch.arange(len(prompt)).expand(2, -1)
    beside_itself = {name: value[[0, 0]] for name, value in inputs.items()}
    a, b = (logits_at(model, given, index)[0].cpu().double() for given in (beside_itself, inputs))
    return float(((a - b).norm(dim=-1) / a.norm(dim=-1).clamp(min=1e-30)).max())


def _dtype(model: nn.Module) -> torch.dtype:
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
