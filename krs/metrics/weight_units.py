"""Which part of a model the rows and columns of its weights are: component, layer, and neuron, head or expert."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from krs.errors import KrsError
from krs.hooks.anatomy import Anatomy
from krs.hooks.components import COMPONENTS, component_of
from krs.hooks.fused import PROJECTIONS, HeadCounts, find
from krs.metrics.weight_path import Weight
from krs.models.devices import summable

ACCOUNTED = tuple(
    part for c in COMPONENTS for part in (*(f"attention_{p}" for p in PROJECTIONS if c == "attention_in"), c)
)
"""Components as `krs.metrics.drift` has them, queries, keys and values apart where krs knows which is which."""

WHOLE = -1
"""The unit of what has no units."""

Place: TypeAlias = tuple[str, int, int]
"""Component, layer (-1 outside the layers), unit."""


def parts_of(places: tuple[Place, ...]) -> list[tuple[str, int]]:
    """Component and layer, each once: components in the model's order, then layers."""
    found = dict.fromkeys((component, layer) for component, layer, _ in places)
    return sorted(found, key=lambda part: (ACCOUNTED.index(part[0]), part[1]))


@dataclass
class Units:
    """The units of some weights, and sums over everything else.

    Attributes:
        places: every unit once, in the order of the vectors that `gathered` makes.
        axes: for each weight the axis that its units lie along; `None` if it has none.
        owners: for each weight, which of `places` its entries along that axis are.
    """

    places: list[Place] = field(default_factory=list)
    axes: list[int | None] = field(default_factory=list)
    owners: list[np.ndarray] = field(default_factory=list)

    @staticmethod
    def of(body: Anatomy, weights: Sequence[Weight]) -> Units:
        """The units of weights of a model of the family of `body`."""
        neurons: dict[int, int] = {}
        for weight in weights:
            component, layer = component_of(body, weight.name)
            if component == "value_vectors" and weight.held.dim() == 2:
                neurons[layer] = weight.held.shape[_axis(component, weight)]
        found, slots = Units(), {}
        for weight in weights:
            axis, places = _entries(body, weight, neurons)
            for place in places:
                if place not in slots:
                    slots[place] = len(found.places)
                    found.places.append(place)
            found.axes.append(axis)
            found.owners.append(np.array([slots[place] for place in places]))
        return found

    def reduced(self, which: int, values: Tensor) -> Tensor:
        """Sums over everything but the units' axis of one weight, float64."""
        values, axis = summable(values), self.axes[which]
        others = [d for d in range(values.dim()) if d != axis]
        return values.double() if not others else values.sum(others, dtype=torch.float64).reshape(-1)

    def gathered(self, found: Mapping[int, Tensor]) -> np.ndarray:
        """One number a unit, from what `reduced` made of some of the weights; 0 for units of the others."""
        total = np.zeros(len(self.places))
        for which, values in found.items():
            np.add.at(total, self.owners[which], values.cpu().numpy())
        return total


def _axis(component: str, weight: Weight) -> int:
    """Where neurons or heads lie: in what a projection takes if it writes to the stream, else in what it returns."""
    takes = component in ("value_vectors", "attention_out")
    return int(takes != weight.transposed)


def _entries(body: Anatomy, weight: Weight, neurons: Mapping[int, int]) -> tuple[int | None, list[Place]]:
    component, layer = component_of(body, weight.name)
    whole: list[Place] = [(component, layer, WHOLE)]
    if weight.held.dim() == 3 and not _mixes(body, component, layer):
        return 0, [(component, layer, i) for i in range(len(weight.held))]
    if weight.held.dim() != 2 or layer < 0 or _mixes(body, component, layer):
        return None, whole
    axis = _axis(component, weight)
    n, heads = weight.held.shape[axis], HeadCounts.of(body.model.config)
    if component == "value_vectors" or (component == "keys" and n % neurons.get(layer, n + 1) == 0):
        return axis, [(component, layer, i % neurons[layer]) for i in range(n)]
    if component == "attention_out" and n == heads.query * heads.size:
        return axis, [(component, layer, i // heads.size) for i in range(n)]
    if component == "attention_in" and (places := _projected(body, weight.name, layer, n, heads)):
        return axis, places
    return None, whole


def _mixes(body: Anatomy, component: str, layer: int) -> bool:
    """Whether a weight is of a token mixer that is no attention: it has no heads, nor experts where it has 3 axes."""
    return layer >= 0 and component.startswith("attention_") and bool(body.mixer(layer))


def _projected(body: Anatomy, name: str, layer: int, n: int, heads: HeadCounts) -> list[Place]:
    """Of each output of an attention's input projection, whether it is a query, key or value, and of which head.

    What is none of them (the gates beside Qwen3-Next's queries) is no unit. Empty where krs does not know.
    """
    path = name.rpartition(".")[0]
    attention = body.model.get_submodule(path.rpartition(".")[0])
    places: list[Place | None] = [None] * n
    for part in PROJECTIONS:
        try:
            module, units = find(part, lambda inside: hasattr(attention, inside), body.model.config)
        except KrsError:
            return []
        if module != path.rpartition(".")[2]:
            continue
        for i, unit in enumerate(range(n) if units is None else units):
            if unit < n:
                places[unit] = (f"attention_{part}", layer, i // heads.size)
    return [place or ("attention_in", layer, WHOLE) for place in places] if any(places) else []
