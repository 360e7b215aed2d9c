"""What can be recorded and put back: points, their sums, and where they are placed.

Everything here is a value. A `Point` names a quantity of a layer, a `Setting` is a sum of points, a
`Placement` is a setting at some layers, and a `Patch` is a placement with the value that goes there.
None of them knows a model; `krs.hooks.architectures` says where a point is in each, `krs.hooks.library` has the
built-in points, and `krs.hooks.registry` knows points by their names.

>>> from krs import MLP_COEF, ATTN_OUT
>>> (MLP_COEF + ATTN_OUT).at(27, 28)
(mlp_coef+attn_out).at(27, 28)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from operator import index
from typing import Any, ClassVar, Literal, TypeAlias, TypeVar

import torch
from torch import Tensor

from krs.errors import KrsError

Place: TypeAlias = Literal["layer", "embedding", "unembedding"]
"""Where a point is: in the layers, before the first one, or behind the last one."""

PLACES: tuple[Place, ...] = ("layer", "embedding", "unembedding")

P = TypeVar("P", bound="Point")
A = TypeVar("A", bound="ActivationPoint")


@dataclass(frozen=True, repr=False)
class Chosen:
    """Which units or heads of a point."""

    what: Literal["units", "heads"]
    numbers: tuple[int, ...]

    @property
    def label(self) -> str:
        """For a figure's legend: `head 3`, `heads 3, 5`."""
        return f"{self.what if len(self.numbers) > 1 else self.what[:-1]} {', '.join(map(str, self.numbers))}"

    def __repr__(self) -> str:
        return f"{self.what}({', '.join(map(str, self.numbers))})"


@dataclass(frozen=True, repr=False)
class Point:
    """A quantity that every layer has one of, or that the model has one of, at one of its ends.

    Use `ActivationPoint` or `WeightPoint`, and `register_point` to make its name known to
    `krs.sweep(settings=["…"])`.

    Attributes:
        name: how it is written as a string and in result columns.
        role: which module of a layer it belongs to; a `Family` says where that module is. A role that begins with a
            dot is the module's path inside the layer itself, in any family that has it: `".self_attn.q_proj"`, or
            `"."` for the layer.
        label: how figures name it.
        chosen: the units or heads that it is about; `None` for all. Set by `.units(…)` and `.heads(…)`.
        place: `"layer"`, or the end of the model that it is at: `"embedding"`, `"unembedding"`. Such a point has no
            layer.
    """

    name: str
    role: str
    label: str
    chosen: Chosen | None = field(default=None, kw_only=True)
    place: Place = field(default="layer", kw_only=True)
    kind: ClassVar[Literal["activation", "weight"]]

    def __post_init__(self) -> None:
        if self.place not in PLACES:
            raise KrsError(
                f"the point {self.name!r} has place={self.place!r}: choose one of {', '.join(map(repr, PLACES))}"
            )

    def __add__(self, other: Point | Setting) -> Setting:
        return Setting((self,)) + other

    def units(self: P, *units: int) -> P:
        """This point at some entries of the last axis only (rows, for a weight), as a point of its own.

        >>> from krs import MLP_COEF
        >>> MLP_COEF.units(7, 9)
        mlp_coef.units(7, 9)
        """
        return self._choose("units", units)

    def _choose(self: P, what: Literal["units", "heads"], given: tuple[int, ...]) -> P:
        if self.chosen is not None:
            raise KrsError(f"{self.name} has its {self.chosen.what} chosen already: choose once, from the whole point")
        self.refuse_parts()
        numbers = tuple(sorted(set(_indices(given) or ())))
        if not numbers or numbers[0] < 0:
            raise KrsError(f"{self.name}.{what}(…) takes numbers from 0 up, not {', '.join(map(str, given)) or 'none'}")
        chosen = Chosen(what, numbers)
        return replace(self, name=f"{self.name}.{chosen}", label=f"{self.label}, {chosen.label}", chosen=chosen)

    def refuse_parts(self) -> None:
        """Raise `KrsError` for a point of which no units can be chosen: every parameter inside a module."""
        if getattr(self, "whole", False):
            raise KrsError(
                f"{self.name} is every parameter inside a module, and no units of it can be chosen: take a point of "
                "one weight, such as VALUE_VECTORS.units(…)"
            )

    def each(self) -> Each:
        """One setting for each of the units or heads chosen: an axis of a sweep.

        >>> from krs import MLP_COEF
        >>> [s.name for s in MLP_COEF.units(7, 9).each().settings()]
        ['mlp_coef.units(7)', 'mlp_coef.units(9)']
        """
        if self.chosen is None:
            raise KrsError(f"{self.name}.each() has nothing to go through: choose units first, {self.name}.units(7, 9)")
        return Each(self.all_of_it, self.chosen.what, self.chosen.numbers)

    def at(self, *layers: int, positions: Indices = None, units: Indices = None) -> Placement:
        """This point at some layers; see `Setting.at`."""
        return Setting((self,)).at(*layers, positions=positions, units=units)

    def over(self, layers: Iterable[int]) -> tuple[int | None, ...]:
        """Where it is, of these layers: `(None,)`, whatever they are, for a point at an end of the model."""
        return tuple(layers) if self.place == "layer" else (None,)

    def named(self, layer: int | None) -> str:
        """For messages: `mlp_coef at layer 27`, `embedding`."""
        return self.name if layer is None else f"{self.name} at layer {layer}"

    @property
    def points(self) -> tuple[Point, ...]:
        """A point is the setting of itself alone."""
        return (self,)

    @property
    def all_of_it(self: P) -> P:
        """The point without a choice of units or heads."""
        if self.chosen is None:
            return self
        name = self.name.removesuffix(f".{self.chosen}")
        return replace(self, name=name, label=self.label.removesuffix(f", {self.chosen.label}"), chosen=None)

    def __repr__(self) -> str:
        return self.name


@dataclass(frozen=True, repr=False)
class ActivationPoint(Point):
    """A value that flows through a module: what enters it, or what leaves it.

    Values have the shape `[batch, position, unit]` (`[batch, position, head, unit]` where a module treats heads by
    themselves).

    >>> GATE = ActivationPoint("gate", role=".mlp.gate_proj", label="MLP gates", side="output")

    Attributes:
        side: what enters the module, or what leaves it.
        heads_of: for values that lie head by head, which heads these are: `"query"` (as many as there are attention
            heads) or `"key"` (fewer under grouped-query attention).
    """

    side: Literal["input", "output"]
    heads_of: Literal["query", "key"] | None = field(default=None, kw_only=True)
    kind: ClassVar[Literal["activation", "weight"]] = "activation"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.side not in ("input", "output"):
            raise KrsError(f"the point {self.name!r} has side={self.side!r}: choose 'input' or 'output'")
        if self.heads_of not in (None, "query", "key"):
            raise KrsError(f"the point {self.name!r} has heads_of={self.heads_of!r}: choose 'query' or 'key'")

    def heads(self: A, *heads: int) -> A:
        """This point at some attention heads only, as a point of its own.

        >>> from krs import HEAD_OUT
        >>> HEAD_OUT.heads(3, 5).at(20)
        head_out.heads(3, 5).at(20)

        Raises `KrsError` for a point whose units are not those of heads.
        """
        if self.heads_of is None:
            raise KrsError(f"{self.name} is not made of heads: use .units(…), or a point that is, such as HEAD_OUT")
        return self._choose("heads", heads)

    def each_head(self) -> Each:
        """One setting for each attention head that the model has: an axis of a sweep.

        For keys and values these are the key-value heads, fewer under grouped-query attention.

        >>> from krs import HEAD_OUT
        >>> HEAD_OUT.each_head(), HEAD_OUT.heads(0, 3).each()
        (head_out.each_head(), head_out.heads(0, 3).each())

        Raises `KrsError` for a point whose units are not those of heads.
        """
        if self.chosen is not None:
            raise KrsError(
                f"{self.name} has its {self.chosen.what} chosen already: {self.name}.each() goes through them"
            )
        if self.heads_of is None:
            raise KrsError(f"{self.name} is not made of heads: use .units(…), or a point that is, such as HEAD_OUT")
        return Each(self, "heads")


@dataclass(frozen=True, repr=False)
class WeightPoint(Point):
    """The weight matrix of a module (or of several: a family may give a role more than one path).

    Values have the shape `[in, out]` whatever the module's own layout: row j of the value vectors is
    the vector that coefficient j multiplies.

    Attributes:
        whole: every parameter inside the module belongs to it, biases and norms too, not the module's weight alone.
    """

    whole: bool = field(default=False, kw_only=True)
    kind: ClassVar[Literal["activation", "weight"]] = "weight"


@dataclass(frozen=True, repr=False)
class Each:
    """Several settings that differ in which head, or which unit, of one point they are: an axis of a sweep.

    Made by `HEAD_OUT.each_head()`, `HEAD_OUT.heads(0, 3).each()` and `MLP_COEF.units(7, 9).each()`.

    Attributes:
        point: the whole point.
        what: heads, or units.
        numbers: which; `None` for every head that the model has.
    """

    point: Point
    what: Literal["units", "heads"]
    numbers: tuple[int, ...] | None = None

    def settings(self, count: int | None = None) -> tuple[Setting, ...]:
        """The settings, for a model with `count` heads at this point."""
        if self.numbers is None and count is None:
            raise KrsError(f"how many heads {self!r} is depends on the model: name them, or pass n_heads=")
        numbers = range(count or 0) if self.numbers is None else self.numbers
        return tuple(Setting((self.point._choose(self.what, (n,)),)) for n in numbers)

    @property
    def points(self) -> tuple[Point, ...]:
        """No sum: an axis is a setting by itself."""
        raise KrsError(f"{self!r} is an axis, which does not go into a sum: make it a setting of its own")

    def __add__(self, other: object) -> Setting:
        return Setting(self.points)

    def __repr__(self) -> str:
        chosen = "each_head()" if self.numbers is None else f"{Chosen(self.what, self.numbers)}.each()"
        return f"{self.point.name}.{chosen}"


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
    def ends(self) -> tuple[Place, ...]:
        """The ends of the model that it has points at, the embedding first."""
        return tuple(place for place in PLACES[1:] if any(p.place == place for p in self.points))

    @property
    def has_layers(self) -> bool:
        """Whether some point of it is in the layers."""
        return any(p.place == "layer" for p in self.points)

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
            layers: layer numbers, from 0. `at(*range(20, 30))` for a range. None for points at the ends of the model,
                which have no layer: `EMBEDDING.at()`.
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
        found = tuple(many)
        if any(isinstance(i, bool) or getattr(i, "dtype", None) is torch.bool for i in found):
            raise TypeError  # a mask is none of their numbers
        return tuple(index(i) for i in found)
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
        layered = any(p.place == "layer" for p in self.points)
        if not self.layers and layered:
            raise KrsError(f"{self._points()}.at() names no layer: give at least one, such as .at(27)")
        if self.layers and not layered:
            raise KrsError(f"{self._points()} has no layer: write {self._points()}.at(), without a number")
        if bad := [layer for layer in self.layers if layer < 0]:
            raise KrsError(f"{self._points()}.at(…) takes layer numbers from 0 up, not {bad[0]!r}")
        if self.units is not None and (chosen := [p for p in self.points if p.chosen is not None]):
            raise KrsError(f"{chosen[0]!r} has its {chosen[0].chosen.what} chosen already: leave units= out")  # type: ignore[union-attr]
        for point in self.points if self.units is not None else ():
            point.refuse_parts()
        if self.positions is not None and any(p.kind == "weight" for p in self.points):
            raise KrsError(
                f"{self!r}: a weight acts at every position, so positions= does not go with it; "
                "place the weights and the activations separately"
            )

    def of(self, point: Point) -> Placement:
        """The part of it that is about one of its points."""
        return replace(self, points=(point,), layers=self.layers if point.place == "layer" else ())

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
        if not points:
            return None
        layers = self.placement.layers if any(p.place == "layer" for p in points) else ()
        return replace(self, placement=replace(self.placement, points=points, layers=layers))

    def __repr__(self) -> str:
        if self.fn is not None:
            return f"{self.placement!r}.map({getattr(self.fn, '__name__', self.fn)})"
        return f"{self.placement!r}.set({type(self.source).__name__})"
