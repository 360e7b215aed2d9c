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
from krs.hooks.ends import read_point
from krs.hooks.points import Patch, Placement, Point
from krs.hooks.record import Recording
from krs.hooks.values import put

Weight: TypeAlias = Shaped[Tensor, "in *out"]


def activation_change(
    patch: Patch, point: Point, layer: int | None, watch: CallWatch, module: nn.Module, units: tuple[int, ...] | None
) -> Callable[[Tensor], Tensor]:
    """The function from the module's value to the patched one; it never writes into the value it gets.

    Args:
        patch: what goes there.
        point: which of the patch's points.
        layer: which of its layers; `None` at an end of the model.
        watch: what the forward is about.
        module: whose value it is.
        units: which entries of the value's last axis the point is about; `None` for all.
    """
    if isinstance(patch.source, nn.Module):
        raise KrsError(
            f"{patch.placement!r}.set(model): {point.name} is an activation and depends on the tokens. Record it "
            f"first, with record(model, {point.name.upper()}) as acts: …, and then .set(acts)"
        )
    index = None if units is None else torch.tensor(units)

    def change(raw: Tensor) -> Tensor:
        whole, back = watch.by_position(raw, module)
        value = whole if index is None else whole.index_select(-1, index.to(whole.device))
        at = _index(patch.placement, value, watch)
        if patch.fn is not None:
            made: Tensor | None = _called(patch.fn, value[at].clone(), patch.placement)
        else:
            source = _source_value(patch.source, point, layer, value, watch)
            made = None if source is None else source.expand_as(value)[at]
        if made is None:
            return raw
        if patch.placement.positions is None and patch.placement.units is None:
            new = made.to(value)
        else:
            new = value.clone()
            new[at] = made.to(value)
        return back(put(whole, new, _where(value, patch, watch), index))

    return change


def new_weight(
    patch: Patch, point: Point, layer: int | None, which: int, old: Weight, rows: tuple[int, ...] | None = None
) -> Weight:
    """The whole new weight of the `which`-th module of a weight point; `rows` are those that the point is about."""
    _refuse_where(patch)
    chosen = list(rows) if rows is not None else _checked(patch.placement.units, old.shape[0], "unit", patch.placement)
    index = slice(None) if chosen is None else torch.tensor(chosen, device=old.device)
    new = old.clone()
    if patch.fn is not None:
        new[index] = _called(patch.fn, old[index].clone(), patch.placement).detach()
        return new
    source = _source_weight(patch.source, point, layer, which).detach().to(old)
    if rows is not None and source.shape == (len(rows), *old.shape[1:]):
        new[index] = source
        return new
    if source.dim() == old.dim() and source.shape != old.shape:
        raise KrsError(
            f"{point.named(layer)} is {list(old.shape)} ([in, out]) and cannot take {list(source.shape)}: "
            "the two models must have the same shape"
        )
    new[index] = source.expand_as(old)[index]
    return new


def whole_source(patch: Patch, point: Point, layer: int | None) -> nn.Module:
    """The module whose parameters a patch of a whole module takes."""
    _refuse_where(patch)
    if not isinstance(patch.source, nn.Module):
        raise KrsError(f"{patch!r}: {point.name} is every parameter of a layer: give .set(…) another model")
    return anatomy(patch.source, "the source model").modules(point, layer)[0]


def _refuse_where(patch: Patch) -> None:
    if patch.where is not None:
        raise KrsError(f"{patch!r}: a weight acts at every position, so where= does not go with it")


def _source_weight(source: Any, point: Point, layer: int | None, which: int) -> Tensor:
    if isinstance(source, Recording):
        return source.values_at(point, layer)[which]
    if isinstance(source, nn.Module):
        other = anatomy(source, "the source model")
        return read_point(point, other.modules(point, layer)[which], other.path(point, layer, which))
    return _tensor(source)


def _tensor(source: Any) -> Tensor:
    """A tensor as it is; numbers and arrays on the CPU, whatever the default device."""
    return source if isinstance(source, Tensor) else torch.as_tensor(source, device="cpu")


def _source_value(source: Any, point: Point, layer: int | None, value: Tensor, watch: CallWatch) -> Tensor | None:
    """What to put, broadcastable to `value`; `None` where a recording has ended."""
    if not isinstance(source, Recording):
        given = _tensor(source).to(value)
        if given.dim() > value.dim() or any(
            a not in (1, b) for a, b in zip(given.shape[::-1], value.shape[::-1], strict=False)
        ):
            raise KrsError(f"{point.named(layer)}: {list(given.shape)} does not broadcast to {list(value.shape)}")
        return given
    (recorded,) = source.values_at(point, layer)
    span = _span(source.offset, recorded.shape[1], watch)
    if span is None:
        return None
    given = recorded[:, span]
    if given.shape != value.shape:
        raise KrsError(
            f"{point.named(layer)}: recorded {list(recorded.shape)} (from position {source.offset}), but the "
            f"model was called with {list(value.shape)} (from position {watch.offset}), as [batch, position, unit]: "
            "record and run on the same batch"
        )
    return given.to(value)


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


def _where(value: Tensor, patch: Patch, watch: CallWatch) -> Tensor | None:
    """The positions of this call that the patch's mask is true at; `None` for all of them."""
    if patch.where is None:
        return None
    span = _span(0, patch.where.shape[1], watch)
    if span is None:
        return torch.zeros(value.shape[:2], dtype=torch.bool)
    mask = patch.where[:, span]
    if mask.shape != value.shape[:2]:
        raise KrsError(
            f"where= is {list(patch.where.shape)}, but the batch is {list(value.shape[:2])} ([batch, position])"
        )
    return mask
