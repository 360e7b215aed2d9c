"""What a patch makes of a value: the part that `krs.hooks.patch` leaves to arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from krs.errors import KrsError
from krs.hooks.anatomy import anatomy
from krs.hooks.calls import CallWatch
from krs.hooks.points import Patch, Placement, Point
from krs.hooks.record import Recording
from krs.hooks.weights import read_weight

Weight: TypeAlias = Shaped[Tensor, "in out"]


def activation_change(patch: Patch, point: Point, layer: int, watch: CallWatch) -> Callable[[Tensor], Tensor]:
    """The function from the model's value to the patched one; it never writes into the value it gets."""
    if isinstance(patch.source, nn.Module):
        raise KrsError(
            f"{patch.placement!r}.set(model): {point.name} is an activation and depends on the tokens. Record it "
            f"first, with record(model, {point.name.upper()}) as acts: …, and then .set(acts)"
        )

    def change(flat: Tensor) -> Tensor:
        value = watch.unfold(flat)
        index = _index(patch.placement, value, watch)
        if patch.fn is not None:
            part = value[index].clone()
            made: Tensor | None = _called(patch.fn, part, patch.placement)
        else:
            whole = _source_value(patch.source, point, layer, value, watch)
            made = None if whole is None else whole.expand_as(value)[index]
        if made is None:
            return flat
        if patch.placement.positions is None and patch.placement.units is None:
            new = made.to(value)
        else:
            new = value.clone()
            new[index] = made.to(value)
        return _keep_elsewhere(value, new, patch, watch).reshape(flat.shape)

    return change


def new_weight(patch: Patch, point: Point, layer: int, which: int, old: Weight) -> Weight:
    """The whole new weight of the `which`-th module of a weight point."""
    if patch.where is not None:
        raise KrsError(f"{patch!r}: a weight acts at every position, so where= does not go with it")
    rows = _checked(patch.placement.units, old.shape[0], "unit", patch.placement)
    index = slice(None) if rows is None else torch.tensor(rows, device=old.device)
    new = old.clone()
    if patch.fn is not None:
        new[index] = _called(patch.fn, old[index].clone(), patch.placement).detach()
        return new
    source = _source_weight(patch.source, point, layer, which).detach().to(old)
    if source.dim() == 2 and source.shape != old.shape:
        raise KrsError(
            f"{point.name} at layer {layer} is {list(old.shape)} ([in, out]) and cannot take {list(source.shape)}: "
            "the two models must have the same shape"
        )
    new[index] = source.expand_as(old)[index]
    return new


def _source_weight(source: Any, point: Point, layer: int, which: int) -> Tensor:
    if isinstance(source, Recording):
        return source.values_at(point, layer)[which]
    if isinstance(source, nn.Module):
        other = anatomy(source, "the source model")
        return read_weight(other.modules(point, layer)[which], other.path(point, layer, which))
    return _tensor(source)


def _tensor(source: Any) -> Tensor:
    """A tensor as it is; numbers and arrays on the CPU, whatever the default device."""
    return source if isinstance(source, Tensor) else torch.as_tensor(source, device="cpu")


def _source_value(source: Any, point: Point, layer: int, value: Tensor, watch: CallWatch) -> Tensor | None:
    """What to put, broadcastable to `value`; `None` where a recording has ended."""
    if not isinstance(source, Recording):
        put = _tensor(source).to(value)
        if put.dim() > 3 or any(a not in (1, b) for a, b in zip(put.shape[::-1], value.shape[::-1], strict=False)):
            raise KrsError(
                f"{point.name} at layer {layer}: {list(put.shape)} does not broadcast to {list(value.shape)}"
            )
        return put
    (recorded,) = source.values_at(point, layer)
    span = _span(source.offset, recorded.shape[1], watch)
    if span is None:
        return None
    put = recorded[:, span]
    if put.shape != value.shape:
        raise KrsError(
            f"{point.name} at layer {layer}: recorded {list(recorded.shape)} (from position {source.offset}), but the "
            f"model was called with {list(value.shape)} (from position {watch.offset}), as [batch, position, unit]: "
            "record and run on the same batch"
        )
    return put.to(value)


def _span(start: int, length: int, watch: CallWatch) -> slice | None:
    """Which part of something that covers positions start … start+length-1 this call is about."""
    if 0 < start + length <= watch.offset:
        return None
    begin = max(watch.offset - start, 0)
    return slice(begin, begin + watch.length)


def _index(place: Placement, value: Tensor, watch: CallWatch) -> Any:
    """An index into `[batch, position, unit]` for the placement's positions and units."""
    pos: Any = slice(None)
    if place.positions is not None:
        end = watch.offset + watch.length
        absolute = _checked(place.positions, end, "position", place) if watch.offset == 0 else place.positions
        absolute = [p % end if p < 0 else p for p in absolute or ()]
        here = [p - watch.offset for p in absolute if watch.offset <= p < end]
        pos = torch.tensor(here, dtype=torch.long, device=value.device)
    units = _checked(place.units, value.shape[-1], "unit", place)
    if units is None:
        return slice(None), pos
    unit = torch.tensor(units, dtype=torch.long, device=value.device)
    return slice(None), pos if isinstance(pos, slice) else pos[:, None], unit


def _checked(chosen: tuple[int, ...] | None, size: int, what: str, place: Placement) -> list[int] | None:
    if chosen is None:
        return None
    if bad := [c for c in chosen if not -size <= c < size]:
        raise KrsError(f"{place!r}: {what} {bad[0]} is out of range, there are {size}")
    return [c % size for c in chosen]


def _called(fn: Callable[[Tensor], Tensor], part: Tensor, place: Placement) -> Tensor:
    made = fn(part)
    if not isinstance(made, Tensor) or made.shape != part.shape:
        got = list(made.shape) if isinstance(made, Tensor) else type(made).__name__
        raise KrsError(f"the function given to {place!r}.map must return a tensor of {list(part.shape)}, not {got}")
    return made


def _keep_elsewhere(value: Tensor, new: Tensor, patch: Patch, watch: CallWatch) -> Tensor:
    """`new` where the patch's mask is true, the model's own value elsewhere."""
    if patch.where is None:
        return new
    span = _span(0, patch.where.shape[1], watch)
    if span is None:
        return value
    mask = patch.where[:, span].to(value.device)
    if mask.shape != value.shape[:2]:
        raise KrsError(
            f"where= is {list(patch.where.shape)}, but the batch is {list(value.shape[:2])} ([batch, position])"
        )
    return torch.where(mask[..., None], new, value)
