"""Values at chosen points of one forward, with their gradients: what a loss looks at."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch import Tensor

from krs.errors import KrsError
from krs.hooks.anatomy import Anatomy, anatomy
from krs.hooks.calls import CallWatch
from krs.hooks.interrupts import interrupt_deferred
from krs.hooks.listen import on_value
from krs.hooks.points import ActivationPoint, Placement, Point


class Activations:
    """What a forward computed at points and layers: `acts[RESID, 7]` is `[batch, position, …, unit]`.

    Part of the forward's graph where there is one, so that a loss of them has gradients.
    """

    def __init__(self, values: dict[tuple[Point, int], Tensor] | None = None) -> None:
        self._values = values or {}

    def __getitem__(self, key: tuple[Point, int]) -> Tensor:
        if key not in self._values:
            point, layer = key
            there = ", ".join(f"{p.name} at layer {n}" for p, n in self._values) or "nothing"
            raise KrsError(f"{point!r} at layer {layer} was not captured: there is {there}")
        return self._values[key]

    def __iter__(self) -> Iterator[tuple[Point, int]]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def map(self, fn: Callable[[Tensor], Tensor]) -> Activations:
        """The same with `fn` of each value."""
        return Activations({key: fn(value) for key, value in self._values.items()})

    def __repr__(self) -> str:
        return f"Activations({', '.join(f'{p.name}: {n}' for p, n in self._values)})"


@contextmanager
def captured(model: object, what: Iterable[Placement]) -> Iterator[Activations]:
    """Keep what one forward inside the block computes at some places, in the forward's graph; read it after the block.

    >>> import krs
    >>> from krs.hooks.capture import captured
    >>> model, tokenizer = krs.load("smollm2")
    >>> with captured(model, [krs.RESID.at(7)]) as acts:
    ...     _ = model(**tokenizer("Hogwarts is a", return_tensors="pt"))
    >>> acts[krs.RESID, 7].shape, acts[krs.RESID, 7].requires_grad
    (torch.Size([1, 6, 576]), True)

    Nothing is computed inside the forward but a copy of each value, so that checkpointed layers, which are run again
    for the backward pass when the hooks are gone, save as much as they did. Use `krs.hooks.record` where gradients are
    not wanted.

    Raises `KrsError` for weights, for placements at some positions only, for points or layers that the model does not
    have, and after the block for a point that never fired.
    """
    body = anatomy(model)
    places = list(what)
    check_places(body, places)
    acts, watch = Activations(), CallWatch()
    raw: dict[tuple[Point, int], Tensor] = {}
    with ExitStack() as handles:
        with interrupt_deferred():
            handles.callback(watch.attach(body.decoder).remove)
            for place in places:
                for point in place.points:
                    for layer in place.layers:
                        keep = partial(_keep, raw, (point, layer))
                        handles.callback(on_value(body.modules(point, layer), point, keep).remove)  # type: ignore[arg-type]
        yield acts
    if not watch.calls:
        return
    for place in places:
        for point in place.points:
            for layer in place.layers:
                if (point, layer) not in raw:
                    raise KrsError(body.never_fired(point, layer))
                units = place.units if place.units is not None else body.units(point, layer)
                acts._values[point, layer] = _chosen(raw[point, layer], watch, body, point, layer, units)


def check_places(body: Anatomy, places: Iterable[Placement]) -> None:
    """Raise `KrsError` for what `captured` cannot capture of this model."""
    for place in places:
        if weights := [p for p in place.points if not isinstance(p, ActivationPoint)]:
            raise KrsError(f"{weights[0]!r} is a weight, and only activations are captured: name an activation point")
        if place.positions is not None:
            raise KrsError(f"{place!r}: all positions are captured: leave positions= out, and index the value")
        body.require(place.points, place.layers)


def _keep(raw: dict[tuple[Point, int], Tensor], key: tuple[Point, int], value: Tensor) -> None:
    raw[key] = value.clone()  # what comes later may write into the value


def _chosen(
    value: Tensor, watch: CallWatch, body: Anatomy, point: Point, layer: int, units: tuple[int, ...] | None
) -> Tensor:
    whole, _ = watch.by_position(value, body.modules(point, layer)[0])
    return whole if units is None else whole.index_select(-1, torch.tensor(units, device=whole.device))
