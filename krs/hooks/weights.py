"""Reading and replacing one projection's weight, whatever its layout, and giving it back bit for bit.

A module's weight is the linear map that it applies, as merging would give it: with the adapters that are active, and
with packed numbers unpacked. `linear_map` is the one way to it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from krs.errors import KrsError
from krs.hooks.adapters import merged_layer
from krs.hooks.linear import PLAIN_TYPES, LinearMap, asked_map, is_packed, own_map
from krs.hooks.unwrap import is_adapter, outside

_MISSING = object()


def linear_map(module: nn.Module, path: str) -> LinearMap:
    """What a projection makes of its input in eval mode: `x @ weight + bias`.

    Views of the parameters where there is nothing around or in place of them. Raises `KrsError` for a weight that is
    not here (offloaded), and for a module that does not apply one weight to every input.
    """
    module = outside(module)
    replaced = module.__dict__.get("forward")
    if isinstance(replaced, LinearMap):
        return replaced
    refuse_offloaded(module, path)
    if next(module.parameters(), None) is None and next(module.buffers(), None) is None:
        raise KrsError(f"{path} ({type(module).__name__}) has no weight to read or replace")
    if not is_adapter(module):
        return own_map(module) or asked_map(module, path)
    try:
        found = own_map(merged_layer(module, path))
    except KrsError as reason:
        return _asked_instead(module, path, reason)
    return found or asked_map(module, path)


def effective_parameters(module: nn.Module, path: str) -> dict[str, Tensor]:
    """A module's own parameters (not its children's) by name, adapters merged and packed numbers unpacked.

    Where there is neither, the parameters themselves. `module` comes from `plain_modules`. Raises `KrsError` as
    `linear_map` does, and for packed numbers that are no linear map's.
    """
    refuse_offloaded(module, path)
    if is_adapter(module):
        try:
            return dict(merged_layer(module, path).named_parameters())
        except KrsError as reason:
            return _named(_asked_instead(module, path, reason))
    if not is_packed(module):
        return {name: p for name, p in module._parameters.items() if p is not None}
    return _named(asked_map(module, path))


def _named(found: LinearMap) -> dict[str, Tensor]:
    return {"weight": found.weight.T} | ({} if found.bias is None else {"bias": found.bias})


def read_weight(module: nn.Module, path: str) -> Shaped[Tensor, "in *out"]:
    """The weight that `module` applies, as `[in, out]`: for an MLP's output projection, a row a value vector.

    A view of the parameter where that is the weight; with an adapter, what merging gives; of a packed weight, the
    unpacked one. Raises `KrsError` as `linear_map` does.
    """
    norm = diagonal(module)
    if norm is not None:
        refuse_offloaded(outside(module), path)
        return norm
    return linear_map(module, path).weight


def replace_weight(module: nn.Module, path: str, value: Shaped[Tensor, "in *out"]) -> Callable[[], None]:
    """Make `module` apply `value` (`[in, out]`) and return the function that undoes it, bit for bit.

    A plain parameter is written in place, so tied parameters stay tied. Where the weight is not one parameter (an
    adapter, packed numbers), the module's forward is replaced meanwhile: the value is the whole weight, not an addition
    to it. The module keeps its own bias.
    """
    holder = outside(module)
    if diagonal(module) is not None:
        return _written(read_weight(module, path), value)
    found = linear_map(module, path)
    if tuple(value.shape) != tuple(found.weight.shape):
        raise KrsError(
            f"{path}: the weight is {list(found.weight.shape)} ([in, out]) and cannot take a value of "
            f"{list(value.shape)}: the two models must have the same shape"
        )
    if _is_view(found, holder):
        return _written(found.weight, value)
    return forward_replaced(module, LinearMap(value.detach().to(found.weight), found.bias))


def forward_replaced(module: nn.Module, new: Callable[..., Tensor]) -> Callable[[], None]:
    """Make `module` run `new` in place of its forward; returns what undoes it."""
    holder = outside(module)
    had = holder.__dict__.get("forward", _MISSING)
    object.__setattr__(holder, "forward", new)

    def undo() -> None:
        if had is _MISSING:
            object.__delattr__(holder, "forward")
        else:
            object.__setattr__(holder, "forward", had)

    return undo


def write_weight(module: nn.Module, path: str, value: Shaped[Tensor, "in out"]) -> None:
    """Write `value` into the parameter for good; raises `KrsError` where the weight is more than one parameter."""
    found = linear_map(module, path)
    if not _is_view(found, outside(module)):
        raise KrsError(
            f"{path} ({type(module).__name__}) has an adapter around its weight, or packs it, and cannot be edited: "
            "merge adapters first (merge_and_unload()), and load the model unquantised"
        )
    _written(found.weight, value)


def own_bias(module: nn.Module, forward: Callable[[Tensor], Tensor], like: Tensor) -> Tensor | None:
    """The bias that `module` adds, `[out]`; `None` without one.

    Args:
        module: the projection.
        forward: its forward, if something stands in for it just now.
        like: what it is called with, `[…, in]`.
    """
    holder = outside(module)
    bias = holder._parameters.get("bias")
    plain = not is_adapter(holder) and type(holder._parameters.get("weight")) in PLAIN_TYPES
    if plain and (bias is None or bias.device.type != "meta"):
        return bias
    shift = forward(like.new_zeros(1, like.shape[-1]))[0]
    return shift if shift.any() else None


def _written(rows: Tensor, value: Tensor) -> Callable[[], None]:
    saved = rows.detach().clone()

    def write(what: Tensor) -> None:
        with torch.inference_mode(rows.is_inference()), torch.no_grad():  # only there may such a weight be written
            rows.copy_(what)

    try:
        write(value)
    except BaseException:
        write(saved)
        raise
    return lambda: write(saved)


def replace_whole(module: nn.Module, other: nn.Module) -> Callable[[], None]:
    """Give every parameter inside `module` the value that it has in `other`; returns what undoes it, bit for bit."""
    refuse_unlike(module, other)
    theirs = dict(other.named_parameters())
    ours = dict(module.named_parameters())
    if elsewhere := [n for n in ours if "meta" in (ours[n].device.type, theirs[n].device.type)]:
        raise KrsError(f"{elsewhere[0]!r} is offloaded and not in memory, so it cannot be replaced here")
    undoing: list[Callable[[], None]] = []

    def undo() -> None:
        while undoing:
            undoing.pop()()

    try:
        for name, p in ours.items():
            undoing.append(_written(p, theirs[name]))
    except BaseException:
        undo()
        raise
    return undo


def refuse_unlike(module: nn.Module, other: nn.Module) -> None:
    """Raise `KrsError` for modules that cannot take each other's parameters, or would do something else with them."""
    ours, theirs = ({name: p.shape for name, p in m.named_parameters()} for m in (module, other))
    if ours != theirs or _scales(module) != _scales(other):
        raise KrsError(
            "all weights of a layer go from one model to the other only where both have the same parameters: merge "
            "adapters first (merge_and_unload())"
        )


def _scales(module: nn.Module) -> list[str]:
    """What of adapters inside a module is no parameter: their scales, and which of them act."""
    names = ("scaling", "active_adapters", "disable_adapters", "merged_adapters")
    return [repr([getattr(m, name, None) for name in names]) for m in module.modules() if is_adapter(m)]


def diagonal(module: nn.Module) -> Tensor | None:
    """The weight of a norm, one number a unit, which is no linear map; `None` for any other module."""
    weight = outside(module)._parameters.get("weight")
    return weight if weight is not None and weight.dim() == 1 and not is_adapter(outside(module)) else None


def _is_view(found: LinearMap, holder: nn.Module) -> bool:
    """Whether the map's weight is the module's parameter itself."""
    weight = holder._parameters.get("weight")
    return weight is not None and found.weight.data_ptr() == weight.data_ptr() and weight.numel() > 0


def _asked_instead(module: nn.Module, path: str, reason: KrsError) -> LinearMap:
    """The map of an adapter that peft does not merge, by asking; where that fails too, both reasons."""
    try:
        return asked_map(module, path)
    except KrsError as other:
        raise KrsError(f"{other} ({reason})") from None


def refuse_offloaded(module: nn.Module, path: str) -> None:
    """Raise `KrsError` for a weight that is not in memory."""
    if any(p.device.type == "meta" for p in module.parameters(recurse=is_adapter(module))):
        raise KrsError(
            f"{path}: the weight is offloaded and not in memory, so it cannot be read or replaced here: "
            "load the model without offload, or leave the weight points out"
        )
