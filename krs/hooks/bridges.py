"""The plain model that a TransformerLens bridge was made of, with the same parameters and without the bridge's modules.

A bridge puts modules of its own in the place of the original ones and computes attention itself, so that fused
projections are never called and its layers cannot be compared with a plain model's. Its original modules are all still
there: a copy of the tree that leaves the bridge's out is the model again.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from krs.errors import KrsError
from krs.hooks.context import plain_calls
from krs.hooks.idle import acting_hooks
from krs.hooks.unwrap import outside

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs")
_TOKENS = 4
_CLOSE = 1e-2
"""Relative change of the logits that may be another kernel's rounding, bf16 included."""


def without_bridge(model: nn.Module, side: str = "the model") -> nn.Module:
    """The model as it would be without a bridge around its modules; itself where there is none.

    Shares every parameter and buffer with `model`, which stays as it is. Where somebody's hooks act in the bridge, or
    its weights are offloaded, it is returned with them: what it computes is then more than its parameters say.

    Raises `KrsError` for a bridge that has weights which are not the original ones.
    """
    if not any(outside(m) is not m for m in model.modules()):
        return model
    if any(True for _ in acting_hooks(model)) or any(_is_wrapped(m) for m in model.modules()):
        return model
    plain = _copied(model, {})
    _refuse_other_weights(model, plain, side)
    _refuse_other_logits(model, plain, side)
    return plain


def _is_wrapped(module: nn.Module) -> bool:
    """Whether somebody but the bridge has replaced a module's forward, as `accelerate` does to offload it."""
    return "forward" in module.__dict__ and not _is_of_bridge(module.__dict__["forward"])


def _is_of_bridge(function: Any) -> bool:
    """Whether TransformerLens made a function: a hook of a bridge's, or a forward that copies what it returns."""
    return str(getattr(function, "__module__", "")).partition(".")[0] == "transformer_lens"


def _copied(module: nn.Module, made: dict[int, nn.Module]) -> nn.Module:
    """A copy of a tree of modules without the bridge's, its parameters and buffers shared."""
    inner = outside(module)
    if id(inner) in made:
        return made[id(inner)]
    made[id(inner)] = new = copy.copy(inner)
    state = new.__dict__
    for name in ("_parameters", "_buffers"):
        state[name] = dict(state[name])
    for name in _HOOKS:
        state[name] = type(state[name])(state[name])
    for name in _HOOKS[:2]:
        for key, hook in list(state[name].items()):
            if _is_of_bridge(hook):
                del state[name][key]
    state.pop("forward", None)
    state["_modules"] = {name: child and _copied(child, made) for name, child in inner._modules.items()}
    return new


def _refuse_other_weights(model: nn.Module, plain: nn.Module, side: str) -> None:
    """Raise `KrsError` unless what the bridge keeps beside the original weights is a slice of them, bit for bit."""
    shared = {id(p) for p in plain.parameters()}
    for name, module in model.named_modules():
        for part, value in _split_again(module):
            own = dict(part.named_parameters())
            shared |= {id(p) for p in own.values()}
            if any(not torch.equal(own[k], value[k]) for k in own.keys() & value.keys()) or own.keys() != value.keys():
                _refuse(
                    side, f"at {name!r} queries, keys or values that are not those of the projection they come from"
                )
    if rest := [n for n, p in model.named_parameters() if id(p) not in shared]:
        _refuse(side, f"{rest[0]!r}, which is none of the original parameters")


def _split_again(module: nn.Module) -> Iterator[tuple[nn.Module, dict[str, Tensor]]]:
    """For each module that a bridge has cut out of a fused one: it, and what cutting again gives."""
    for method, names in (("split_qkv_matrix", ("q", "k", "v")), ("split_gate_up_matrix", ("gate", "in"))):
        split, original = getattr(module, method, None), getattr(module, "original_component", None)
        if split is None or original is None:
            continue
        for name, again in zip(names, split(original), strict=True):
            if isinstance(again, nn.Module) and isinstance(part := module._modules.get(name), nn.Module):
                yield outside(part), {k: p.detach() for k, p in again.named_parameters()}


def _refuse_other_logits(model: nn.Module, plain: nn.Module, side: str) -> None:
    device = plain.get_input_embeddings().weight.device  # type: ignore[operator]
    ids = torch.arange(_TOKENS, device=device)[None]
    with torch.no_grad(), plain_calls(model, plain):
        ours, theirs = (m(input_ids=ids, use_cache=False).logits.double() for m in (plain, model))
    if not (ours - theirs).norm() <= _CLOSE * theirs.norm() and torch.isfinite(theirs).all():
        _refuse(side, "a forward that gives other logits than the model inside it")


def _refuse(side: str, what: str) -> None:
    raise KrsError(
        f"{side} is a TransformerLens bridge with {what}: its scores would not be those of the model that it was made "
        "of. Make the bridge again from the changed model, or pass that model"
    )
