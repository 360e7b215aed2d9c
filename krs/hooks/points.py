"""What can be recorded and put back: points, their sums, and where they are placed.

Everything here is a value. A `Point` names a quantity of a layer, a `Setting` is a sum of points, a
`Placement` is a setting at some layers, and a `Patch` is a placement with the value that goes there.
None of them knows a model; `krs.hooks.families` says where a point is in each architecture.

>>> from krs import MLP_COEF, ATTN_OUT
>>> (MLP_COEF + ATTN_OUT).at(27, 28)
(mlp_coef+attn_out).at(27, 28)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from operator import index
from typing import Any, ClassVar, Literal, TypeAlias

import torch
from torch import Tensor

from krs.errors import KrsError


@dataclass(frozen=True, repr=False)
class Point:
    """A quantity that every layer has one of.

    Use `ActivationPoint` or `WeightPoint`, and `register_point` to make its name known to
    `krs.sweep(settings=["…"])`.

    Attributes:
        name: how it is written as a string and in result columns.
        role: which module of a layer it belongs to; a `Family` says where that module is.
        label: how figures name it.
    """

    name: str
    role: str
    label: str
    kind: ClassVar[Literal["activation", "weight"]]

    def __add__(self, other: Point | Setting) -> Setting:
        return Setting((self,)) + other

    def at(self, *layers: int, positions: Indices = None, units: Indices = None) -> Placement:
        """This point at some layers; see `Setting.at`."""
        return Setting((self,)).at(*layers, positions=positions, units=units)

    @property
    def points(self) -> tuple[Point, ...]:
        """A point is the setting of itself alone."""
        return (self,)

    def __repr__(self) -> str:
        return self.name


@dataclass(frozen=True, repr=False)
class ActivationPoint(Point):
    """A value that flows through a module: what enters it, or what leaves it.

    Values have the shape `[batch, position, unit]`.

    >>> MLP_OUT = ActivationPoint("mlp_out", role="mlp_out_proj", label="MLP outputs", side="output")
    """

    side: Literal["input", "output"]
    kind: ClassVar[Literal["activation", "weight"]] = "activation"


@dataclass(frozen=True, repr=False)
class WeightPoint(Point):
    """The weight matrix of a module (or of several: a family may give a role more than one path).

    Values have the shape `[in, out]` whatever the module's own layout: row j of the value vectors is
    the vector that coefficient j multiplies.
    """

    kind: ClassVar[Literal["activation", "weight"]] = "weight"


@dataclass(frozen=True, repr=False)
class Setting:
    """A sum of points: what one curve of the paper's Fig. 1 restores.

    Order and repetition do not matter to what is restored; the name keeps the order it was written in.

    >>> from krs import MLP_COEF, ATTN_OUT
    >>> (MLP_COEF + ATTN_OUT).name
    'mlp_coef+attn_out'
    """

    points: tuple[Point, ...]

    @property
    def name(self) -> str:
        """The points' names joined by `+`: the column name in results."""
        return "+".join(p.name for p in self.points)

    @property
    def label(self) -> str:
        """The points' labels, for a figure's legend."""
        first, *rest = (p.label for p in self.points)
        return " + ".join([first, *rest])

    def __add__(self, other: Point | Setting) -> Setting:
        new = tuple(p for p in other.points if p not in self.points)
        return Setting(self.points + new)

    def at(self, *layers: int, positions: Indices = None, units: Indices = None) -> Placement:
        """This setting at some layers.

        Args:
            layers: layer numbers, from 0. `at(*range(20, 30))` for a range.
            positions: token positions to touch, `None` for all. Counted in the whole sequence, also under
                `generate()` with a key-value cache; negative ones count from the end of the sequence that the call
                has reached. Activations only.
            units: entries of the last axis of an activation (single MLP coefficients), or rows of a weight (single
                value vectors); `None` for all.
        """
        return Placement(self.points, _indices(layers) or (), _indices(positions), _indices(units))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Setting) and frozenset(self.points) == frozenset(other.points)

    def __hash__(self) -> int:
        return hash(frozenset(self.points))

    def __repr__(self) -> str:
        return self.name


Indices: TypeAlias = int | Iterable[int] | None


def _indices(given: Indices) -> tuple[int, ...] | None:
    """Plain ints, also from what numpy and pandas call ints."""
    if given is None:
        return None
    many = given if isinstance(given, Iterable) else (given,)
    try:
        return tuple(index(i) for i in many)
    except TypeError:
        raise KrsError(f"layers, positions and units are whole numbers, not {given!r}") from None


@dataclass(frozen=True, repr=False)
class Placement:
    """Points at layers, optionally at some positions and units only. Made by `.at(…)`."""

    points: tuple[Point, ...]
    layers: tuple[int, ...]
    positions: tuple[int, ...] | None = None
    units: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if not self.layers:
            raise KrsError(f"{self._points()}.at() names no layer: give at least one, such as .at(27)")
        if bad := [layer for layer in self.layers if layer < 0]:
            raise KrsError(f"{self._points()}.at(…) takes layer numbers from 0 up, not {bad[0]!r}")
        if self.positions is not None and any(p.kind == "weight" for p in self.points):
            raise KrsError(
                f"{self!r}: a weight acts at every position, so positions= does not go with it; "
                "place the weights and the activations separately"
            )

    def set(self, source: Any, *, where: Tensor | None = None) -> Patch:
        """Put values of a recording, of another model or of a tensor here.

        Args:
            source: a `Recording` (activations, and weights if it recorded them), a model (weights only), or a tensor
                or number that broadcasts to the value.
            where: bool `[batch, position]`; only the positions that are true are touched. For batches whose rows
                differ in which positions are meant; `positions=` is the simpler way when they do not.
        """
        return Patch(self, source=source, where=where)

    def map(self, fn: Callable[[Tensor], Tensor], *, where: Tensor | None = None) -> Patch:
        """Put `fn(value)` here, where `value` is what the model has at the positions and units chosen.

        `fn` gets `[batch, position, unit]` for an activation and `[in, out]` for a weight, and returns the
        same shape.
        """
        return Patch(self, fn=fn, where=where)

    def _points(self) -> str:
        names = "+".join(p.name for p in self.points)
        return f"({names})" if len(self.points) > 1 else names

    def __repr__(self) -> str:
        extra = [f"{k}={list(v)}" for k, v in (("positions", self.positions), ("units", self.units)) if v]
        return f"{self._points()}.at({', '.join([*map(str, self.layers), *extra])})"


@dataclass(frozen=True, repr=False, eq=False)
class Patch:
    """A placement and what goes there. Made by `Placement.set` and `Placement.map`, used by `patched`."""

    placement: Placement
    source: Any = None
    fn: Callable[[Tensor], Tensor] | None = None
    where: Tensor | None = field(default=None)

    def __post_init__(self) -> None:
        if (self.source is None) == (self.fn is None):
            raise KrsError(f"{self.placement!r}.set(…) needs a recording, a model or a tensor, not None")
        if self.where is not None and self.where.dtype != torch.bool:
            raise KrsError(f"where= takes a bool tensor [batch, position], not {self.where.dtype}")

    def only(self, kind: Literal["activation", "weight"]) -> Patch | None:
        """The part of this patch that concerns activations, or weights; `None` if there is none."""
        points = tuple(p for p in self.placement.points if p.kind == kind)
        return replace(self, placement=replace(self.placement, points=points)) if points else None

    def __repr__(self) -> str:
        if self.fn is not None:
            return f"{self.placement!r}.map({getattr(self.fn, '__name__', self.fn)})"
        return f"{self.placement!r}.set({type(self.source).__name__})"


MLP_COEF = ActivationPoint("mlp_coef", role="mlp_out_proj", label="MLP coefficients", side="input")
"""The MLP coefficients `m = f(W_K x)`, `[batch, position, n]`: the *input* of the MLP's output projection.

In a gated MLP this is `act(gate(x)) * up(x)`, never the output of the activation function alone.
"""

VALUE_VECTORS = WeightPoint("value_vectors", role="mlp_out_proj", label="Value vectors")
"""The value vectors `W_V`, `[n, d]`: the weight of the MLP's output projection. Its bias, where the
architecture has one (GPT-2, GPT-J …), is not part of it and stays the model's own."""

ATTN_OUT = ActivationPoint("attn_out", role="attn_out_proj", label="Attention outputs", side="output")
"""The attention output `A`, `[batch, position, d]`: what the attention module's output projection returns.

In post-norm families (OLMo2, Gemma2, Glm4) a norm follows before it is added to the residual stream.
"""

_REGISTRY: dict[str, Point] = {}


def register_point(point: Point) -> Point:
    """Make a point known by its name, so that strings such as `"mlp_coef+my_point"` can use it.

    >>> MLP_OUT = register_point(
    ...     ActivationPoint("mlp_out", role="mlp_out_proj", label="MLP outputs", side="output"))
    >>> setting("mlp_out+attn_out").name
    'mlp_out+attn_out'
    """
    known = _REGISTRY.setdefault(point.name, point)
    if known != point:
        raise KrsError(f"the point name {point.name!r} is taken by another point: choose another name")
    return point


for _point in (MLP_COEF, VALUE_VECTORS, ATTN_OUT):
    register_point(_point)


def setting(given: str | Point | Setting) -> Setting:
    """A setting from a point, a sum of points, or their names joined by `+`."""
    if isinstance(given, Setting):
        return given
    if isinstance(given, Point):
        return Setting((given,))
    if not isinstance(given, str):
        raise KrsError(f"a setting is a point, a sum of points or a string, not {type(given).__name__}")
    names = [name.strip() for name in given.split("+")]
    if unknown := [name for name in names if name not in _REGISTRY]:
        raise KrsError(
            f"unknown point {unknown[0]!r} in setting {given!r}: known are {', '.join(sorted(_REGISTRY))}; "
            "add your own with krs.hooks.register_point"
        )
    first, *rest = (_REGISTRY[name] for name in names)
    total = Setting((first,))
    for point in rest:
        total = total + point
    return total
