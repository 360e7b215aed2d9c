"""Recording what a model computes at chosen points and layers, and nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from krs.errors import KrsError
from krs.hooks.anatomy import Anatomy, anatomy
from krs.hooks.calls import CallWatch
from krs.hooks.ends import read_point
from krs.hooks.family import Family
from krs.hooks.finite import refuse_recorded
from krs.hooks.interrupts import interrupt_deferred
from krs.hooks.listen import on_value
from krs.hooks.points import ActivationPoint, Point, Setting
from krs.hooks.registry import setting


class Recording:
    """Values by point and layer, of the latest forward. Made by `record`.

    `acts[MLP_COEF, 27]` is a copy, `[batch, position, unit]` for an activation, `[in, out]` for a weight;
    changing it does not change the recording. A point at an end of the model has no layer: `acts[EMBEDDING]`.
    `set(acts)` puts the values into another model. `config` is the model's.
    """

    def __init__(self, points: tuple[Point, ...], layers: tuple[int, ...], config: Any = None) -> None:
        self.points = points
        self.config = config
        self.layers = layers
        self.offset = 0
        self._values: dict[tuple[Point, int | None], tuple[Tensor, ...]] = {}

    def __getitem__(self, key: tuple[Point, int] | Point) -> Tensor:
        point, layer = (key, None) if isinstance(key, Point) else key
        values = self.values_at(point, layer)
        if len(values) > 1:
            raise KrsError(f"{point.name} has {len(values)} matrices a layer: use acts.values_at({point.name}, …)")
        return values[0].clone()

    def values_at(self, point: Point, layer: int | None = None) -> tuple[Tensor, ...]:
        """The stored values themselves, one a module of the point's role. Do not write into them."""
        if (point, layer) in self._values:
            return self._values[point, layer]
        if point in self.points and layer in point.over(self.layers):
            raise KrsError(f"{point.named(layer)}: nothing recorded yet; call the model inside the block")
        raise KrsError(f"{point.named(layer)} is not in {self!r}: ask for it in record(…)")

    def moved(self, positions: Int[Tensor, "batch pos"]) -> Recording:
        """The same activations at other positions: at `pos` of each row the value that was recorded at `positions`."""
        new = Recording(self.points, self.layers)
        rows = torch.arange(len(positions))[:, None]
        new._values = {key: tuple(v[rows, positions.to(v.device)] for v in each) for key, each in self._values.items()}
        return new

    def __contains__(self, key: object) -> bool:
        return ((key, None) if isinstance(key, Point) else key) in self._values

    def __iter__(self) -> Iterator[tuple[Point, int | None]]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        names = "+".join(p.name for p in self.points)
        size = sum(v.numel() * v.element_size() for values in self._values.values() for v in values)
        return f"Recording({names} at layers {_ranges(self.layers)}: {len(self)} values, {size / 2**20:.1f} MiB)"


@contextmanager
def record(
    model: object,
    what: Point | Setting | str,
    layers: Iterable[int] | None = None,
    *,
    family: Family | str | None = None,
) -> Iterator[Recording]:
    """Record points of a model during the forwards inside the block.

    >>> import krs
    >>> from krs.hooks import record
    >>> model, tokenizer = krs.load("smollm2")
    >>> with record(model, krs.MLP_COEF + krs.ATTN_OUT, layers=range(20, 30)) as acts:
    ...     _ = model(**tokenizer("Hogwarts is a", return_tensors="pt"))
    >>> acts[krs.MLP_COEF, 27].shape
    torch.Size([1, 6, 1536])

    Args:
        model: a transformers model, TransformerLens bridge or PEFT model.
        what: the points; only these are kept, detached and cloned. Weights are read as the block begins.
        layers: the layers; all of them by default. Points at the ends of the model have none.
        family: as in `krs.sweep`.

    A second forward replaces what the first one left. Inside `patched`, the patched values are recorded.
    Raises `KrsError` before anything runs for a point or layer the model does not have, and at the end of
    the block when the model ran but a point never fired, or when a value is NaN or infinite and no patch put it there.
    """
    body = anatomy(model, family=family)
    points = setting(what).points
    chosen = tuple(layers) if layers is not None else tuple(range(body.n_layers))
    body.require(points, chosen)
    acts = Recording(points, chosen, body.model.config)
    watch = CallWatch()
    handles = ExitStack()
    try:
        with interrupt_deferred():
            handles.callback(watch.attach(body.decoder).remove)
            for point in points:
                for layer in point.over(chosen):
                    _listen(body, point, layer, acts, watch, handles)
        yield acts
    finally:
        with interrupt_deferred():
            handles.close()
    refuse_recorded(body, acts._values)
    missing = [(p, layer) for p in points for layer in p.over(chosen) if (p, layer) not in acts]
    if watch.calls and missing:
        raise KrsError(body.never_fired(*missing[0]))


def _listen(
    body: Anatomy, point: Point, layer: int | None, acts: Recording, watch: CallWatch, handles: ExitStack
) -> None:
    modules = body.modules(point, layer)
    if not isinstance(point, ActivationPoint):
        units = body.units(point, layer)
        rows = slice(None) if units is None else list(units)
        values = (
            read_point(point, m, body.path(point, layer, i)).detach()[rows].clone() for i, m in enumerate(modules)
        )
        acts._values[point, layer] = tuple(values)
        return

    units = body.units(point, layer)
    index = None if units is None else torch.tensor(units)

    def keep(value: Tensor) -> None:
        whole, _ = watch.by_position(value.detach(), modules[0])
        with torch.inference_mode(False):  # a clone that may be used outside the caller's inference mode
            kept = whole.clone() if index is None else whole.index_select(-1, index.to(whole.device))
            acts._values[point, layer] = (kept,)
        acts.offset = watch.offset

    handles.callback(on_value(modules, point, keep).remove)


def _ranges(layers: tuple[int, ...]) -> str:
    if len(layers) > 2 and layers == tuple(range(layers[0], layers[-1] + 1)):
        return f"{layers[0]}-{layers[-1]}"
    return ", ".join(map(str, layers))
