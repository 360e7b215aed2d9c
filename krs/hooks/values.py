"""What a module is called with and returns, seen as `[batch, position, …, unit]`, and putting other values there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from krs.errors import KrsError
from krs.wording import kind

_AXES: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()
"""The axis of the positions, for modules whose values have had one axis only that could be it."""


def first_tensor(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[int | str, Tensor]:
    """The value that a module is called with, and where it stands: its number, or its keyword."""
    for i, value in enumerate(args):
        if isinstance(value, Tensor):
            return i, value
    for name in ("hidden_states", *kwargs):
        if isinstance(kwargs.get(name), Tensor):
            return name, kwargs[name]
    raise KrsError("a module was called without a tensor, so nothing can be recorded or put at its input")


def with_first(
    args: tuple[Any, ...], kwargs: dict[str, Any], slot: int | str, value: Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The same call with another value in that place."""
    if isinstance(slot, str):
        return args, {**kwargs, slot: value}
    return (*args[:slot], value, *args[slot + 1 :]), kwargs


def returned(output: Any) -> Tensor:
    """The value that a module returns: the first of a tuple."""
    value = output[0] if isinstance(output, tuple) else output
    if not isinstance(value, Tensor):
        raise KrsError(f"a module returned {kind(value)}, so nothing can be recorded or put at its output")
    return value


def with_returned(output: Any, value: Tensor) -> Any:
    """The same output with another value in its place."""
    return (value, *output[1:]) if isinstance(output, tuple) else value


def by_position(value: Tensor, batch: int, length: int, module: nn.Module) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """A view of a module's value as `[batch, position, …, unit]`, and the way back.

    Some modules see `[batch * position, unit]` (OPT's MLP), some `[batch, head, position, unit]` (norms of queries
    in Gemma3). Raises `KrsError` for a value that has no axis of positions, and for one in which heads and positions
    are equally many and nothing seen before tells them apart.
    """
    if value.dim() == 2 and value.shape[0] == batch * length:
        return value.reshape(batch, length, value.shape[-1]), lambda new: new.reshape(value.shape)
    axes = [a for a in (1, 2) if a < value.dim() - 1 and value.shape[a] == length and value.shape[0] == batch]
    if len(axes) == 2 and module in _AXES:
        axes = [_AXES[module]]
    if len(axes) == 2:
        raise KrsError(
            f"{type(module).__name__}: its value is {list(value.shape)}, in which heads and positions are equally "
            "many: run krs.hooks.self_check with this point first, or call the model with another number of tokens"
        )
    if not axes:
        raise KrsError(
            f"{type(module).__name__}: its value is {list(value.shape)}, which has no axis of {length} positions in a "
            f"batch of {batch}: it cannot be recorded or put back position by position"
        )
    (axis,) = axes
    _AXES[module] = axis
    if axis == 1:
        return value, lambda new: new
    return value.transpose(1, 2), lambda new: new.transpose(1, 2)


def put(own: Tensor, other: Tensor, where: Tensor | None = None, units: Sequence[int] | Tensor | None = None) -> Tensor:
    """`other` in place of `own`, `[batch, position, …, unit]`, at some positions and units; `own` is not written to.

    >>> put(torch.zeros(1, 2, 3), torch.ones(1, 2, 3), torch.tensor([[False, True]]), [0])
    tensor([[[0., 0., 0.],
             [1., 0., 0.]]])

    Args:
        own: what is there.
        other: what is put, as wide as `own`, or as wide as there are `units`.
        where: bool `[batch, position]`, `None` for all positions.
        units: entries of the last axis, `None` for all.
    """
    other = other.to(own)
    if units is None and where is None:
        return other.expand_as(own).clone()
    index = None if units is None else torch.as_tensor(units, device=own.device)
    part = own if index is None else own.index_select(-1, index)
    if index is not None and other.shape[-1] == own.shape[-1] != len(index):
        other = other.index_select(-1, index)
    new = other.expand_as(part)
    if where is not None:
        mask = where.to(own.device)
        new = torch.where(mask.reshape(*mask.shape, *[1] * (own.dim() - 2)), new, part)
    return new.clone() if index is None else own.index_copy(-1, index, new)
