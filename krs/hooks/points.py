"""What can be recorded and put back: points, their sums, and where they are placed.

Everything here is a value. A `Point` names a quantity of a layer, a `Setting` is a sum of points, a
`Placement` is a setting at some layers, and a `Patch` is a placement with the value that goes there.
None of them knows a model; `krs.hooks.families` says where a point is in each architecture.

>>> from krs import MLP_COEF, ATTN_OUT
>>> (MLP_COEF + ATTN_OUT).at(27, 28)
(mlp_coef+attn_out).at(27, 28)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from operator import index
from typing import Any, ClassVar, Literal, NoReturn, TypeAlias, TypeVar

import torch
from torch import Tensor

from krs.errors import KrsError
from krs.hooks.lens_names import is_hook_name, point_name
from krs.registry import Registry, caller

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
    """A quantity that every layer has one of.

    Use `ActivationPoint` or `WeightPoint`, and `register_point` to make its name known to
    `krs.sweep(settings=["…"])`.

    Attributes:
        name: how it is written as a string and in result columns.
        role: which module of a layer it belongs to; a `Family` says where that module is. A role that begins with a
            dot is the module's path inside the layer itself, in any family that has it: `".self_attn.q_proj"`, or
            `"."` for the layer.
        label: how figures name it.
        chosen: the units or heads that it is about; `None` for all. Set by `.units(…)` and `.heads(…)`.
    """

    name: str
    role: str
    label: str
    chosen: Chosen | None = field(default=None, kw_only=True)
    kind: ClassVar[Literal["activation", "weight"]]

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
        numbers = tuple(sorted(set(_indices(given) or ())))
        if not numbers or numbers[0] < 0:
            raise KrsError(f"{self.name}.{what}(…) takes numbers from 0 up, not {', '.join(map(str, given)) or 'none'}")
        chosen = Chosen(what, numbers)
        return replace(self, name=f"{self.name}.{chosen}", label=f"{self.label}, {chosen.label}", chosen=chosen)

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

    def heads(self: A, *heads: int) -> A:
        """This point at some attention heads only, as a point of its own.

        >>> from krs import HEAD_OUT
        >>> HEAD_OUT.heads(3, 5).at(20)
        head_out.heads(3, 5).at(20)

        Raises `KrsError` for a point whose units are not those of heads.
        """
        if self.heads_of is None:
            _no_heads(self)
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
            _no_heads(self)
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
        if self.units is not None and (chosen := [p for p in self.points if p.chosen is not None]):
            raise KrsError(f"{chosen[0]!r} has its {chosen[0].chosen.what} chosen already: leave units= out")  # type: ignore[union-attr]
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

RESID = ActivationPoint("resid", role=".", label="Residual stream", side="output")
"""The residual stream behind a layer, `[batch, position, d]`: what the layer returns."""

RESID_PRE = ActivationPoint("resid_pre", role=".", label="Residual stream before", side="input")
"""The residual stream before a layer, `[batch, position, d]`: what the layer gets."""

MLP_OUT = ActivationPoint("mlp_out", role="mlp_out_proj", label="MLP outputs", side="output")
"""The MLP output `M`, `[batch, position, d]`: what the MLP's output projection returns, its bias included."""

HEAD_OUT = ActivationPoint("head_out", role="attn_out_proj", label="Head outputs", side="input", heads_of="query")
"""What the attention heads put out, `[batch, position, heads * head size]`: the *input* of the attention's output
projection. `HEAD_OUT.heads(3, 5)` is two of them."""

ATTN_QUERY = ActivationPoint("attn_query", role="attn_query", label="Queries", side="output", heads_of="query")
"""The queries, `[batch, position, heads * head size]`: what their projection returns, before rotary positions and
before a norm on them. The slice of a fused projection where the family has one."""

ATTN_KEY = ActivationPoint("attn_key", role="attn_key", label="Keys of the attention", side="output", heads_of="key")
"""The keys of the attention, `[batch, position, key-value heads * head size]`, as `ATTN_QUERY`."""

ATTN_VALUE = ActivationPoint(
    "attn_value", role="attn_value", label="Values of the attention", side="output", heads_of="key"
)
"""The values of the attention, `[batch, position, key-value heads * head size]`, as `ATTN_QUERY`."""

ATTN_ADDED = ActivationPoint("attn_added", role="attn_added", label="Attention's additions", side="output")
"""What the attention adds to the residual stream, `[batch, position, d]`: `ATTN_OUT` behind the norm that follows it in
post-norm families (OLMo2, Gemma2, Glm4), and `ATTN_OUT` itself elsewhere."""

MLP_ADDED = ActivationPoint("mlp_added", role="mlp_added", label="MLP's additions", side="output")
"""What the MLP adds to the residual stream, `[batch, position, d]`, as `ATTN_ADDED`."""

KEYS = WeightPoint("keys", role="mlp_in", label="Keys")
"""The MLP's keys `W_K`: the weights of its input projections, gate and up. Their biases stay the model's own."""

ATTN_WEIGHTS = WeightPoint("attn_weights", role="attn_weights", label="Attention weights")
"""The weights of the attention's projections: queries, keys, values and output. Their biases stay the model's own."""

NORMS = WeightPoint("norms", role="norms", label="Norms")
"""The weights of a layer's norms. A bias of theirs (LayerNorm) stays the model's own."""

WEIGHTS = WeightPoint("weights", role=".", label="All weights of the layer", whole=True)
"""Every parameter of a layer, biases too: a layer of the other model on this model's residual stream."""


def _take(name: str, point: Any) -> None:
    """What an entry point of the group `krs.points` names; one that is no module is a point, whatever it is called."""
    if not isinstance(point, Point):
        raise KrsError(f"the entry point {name!r} (krs.points) names {type(point).__name__}, which is no point")
    REGISTRY.add(point.name, point, f"entry point {name}")


REGISTRY: Registry[Point] = Registry("point", "krs.points", take=_take)


def register_point(point: Point) -> Point:
    """Make a point known by its name, so that strings such as `"mlp_coef+my_point"` can use it.

    >>> GATE = register_point(ActivationPoint("gate", role=".mlp.gate_proj", label="MLP gates", side="output"))
    >>> setting("gate+attn_out").name
    'gate+attn_out'

    A notebook's cell that registers one may be run again, changed. Raises `KrsError` for a name that another point
    has, and for one that a setting's name could not be read back with.
    """
    if not re.fullmatch(r"[A-Za-z_]\w*", point.name):
        raise KrsError(f"a point cannot be called {point.name!r}: use letters, digits and underscores")
    return REGISTRY.add(point.name, point, caller())


_BUILT_IN = (
    MLP_COEF, VALUE_VECTORS, ATTN_OUT, RESID, RESID_PRE, MLP_OUT, HEAD_OUT, ATTN_QUERY, ATTN_KEY, ATTN_VALUE,
    ATTN_ADDED, MLP_ADDED, KEYS, ATTN_WEIGHTS, NORMS, WEIGHTS,
)  # fmt: skip
for _point in _BUILT_IN:
    REGISTRY.add(_point.name, _point, __name__)


def _with_heads() -> list[str]:
    return [p.name for p in REGISTRY.values() if isinstance(p, ActivationPoint) and p.heads_of]


def each(given: object) -> Each | None:
    """An axis from its text, such as `"head_out.each_head()"`; `None` for what is none.

    >>> each("mlp_coef.units(7, 9).each()")
    mlp_coef.units(7, 9).each()
    """
    if isinstance(given, Each):
        return given
    if not isinstance(given, str):
        return None
    name = given.strip()
    if name.endswith(".each()"):
        return _named(name.removesuffix(".each()"), given).each()
    if name.endswith(".each_head()"):
        point = _named(name.removesuffix(".each_head()"), given)
        return point.each_head() if isinstance(point, ActivationPoint) else _no_heads(point)
    return None


def _no_heads(point: Point) -> NoReturn:
    raise KrsError(f"{point.name} is not made of heads: use .units(…), or one of {', '.join(_with_heads())}")


def setting(given: str | Point | Setting) -> Setting:
    """A setting from a point, a sum of points, or their names joined by `+`."""
    if isinstance(given, Setting):
        return given
    if isinstance(given, Point):
        return Setting((given,))
    if not isinstance(given, str):
        raise KrsError(f"a setting is a point, a sum of points or a string, not {type(given).__name__}")
    first, *rest = (_named(name.strip(), given) for name in given.split("+"))
    total = Setting((first,))
    for point in rest:
        total = total + point
    return total


def _named(name: str, given: str) -> Point:
    """A point by its name, as `mlp_coef`, `mlp_coef.units(7, 9)` or `head_out.heads(3)`, or by TransformerLens'."""
    if is_hook_name(name):
        return REGISTRY.find(point_name(name))
    found = re.fullmatch(r"(\w+)(?:\.(units|heads)\(([\d,\s]+)\))?", name)
    remedy = "; add your own with krs.hooks.register_point"
    point = REGISTRY.find(name if found is None else found[1], f" in setting {given!r}", remedy)
    if found is None or found[2] is None:
        return point
    if found[2] == "heads" and not isinstance(point, ActivationPoint):
        _no_heads(point)
    numbers = [int(n) for n in found[3].split(",") if n.strip()]
    return point.units(*numbers) if found[2] == "units" else point.heads(*numbers)  # type: ignore[attr-defined]
