"""Where the points of one particular model are: its family's paths, followed and checked."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from krs.errors import KrsError
from krs.hooks.families import family_for, family_of
from krs.hooks.family import Family
from krs.hooks.fused import HeadCounts, Projection, find
from krs.hooks.points import Point, WeightPoint
from krs.hooks.unwrap import core, unwrap
from krs.wording import counted, kind

_PROJECTED: dict[str, Projection] = {"attn_query": "query", "attn_key": "key", "attn_value": "value"}
_ADDED = {"attn_added": "attn_out_proj", "mlp_added": "mlp_out_proj"}
_BLOCK = "mlp_block"
"""The role of the module whose output is the MLP's, where no single projection's is."""


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a norm, by the name of its class."""
    return "norm" in type(core(module)).__name__.lower()


@dataclass(frozen=True)
class Anatomy:
    """One model and where its points are.

    Attributes:
        model: the plain `transformers` model (wrappers removed).
        family: the family its `config.model_type` belongs to.
        layers: its decoder layers.
    """

    model: nn.Module
    family: Family
    layers: nn.ModuleList

    @property
    def n_layers(self) -> int:
        """How many decoder layers there are."""
        return len(self.layers)

    @property
    def decoder(self) -> nn.Module:
        """The module that runs the layers once a forward."""
        return self.model.get_submodule(self.family.decoder)

    def paths(self, point: Point, layer: int | None) -> tuple[str, ...]:
        """Paths, inside the layer, of the module or modules that a point is about; `""` is the layer itself.

        Of a point at an end of the model (`layer` is `None`), the path in the model. Raises `KrsError` for a layer out
        of range, and for a role that this family or this layer does not have.
        """
        if layer is None:
            return (self._end(point),)
        if not 0 <= layer < self.n_layers:
            raise KrsError(
                f"layer {layer} is out of range: this model has {counted(self.n_layers, 'layer')}, "
                f"0 to {self.n_layers - 1}"
            )
        role = point.role
        if role.startswith("."):
            return (role[1:],)
        self._require_heads(point, layer)
        if role not in self.family.roles and role not in self.family.absent:
            if role in _PROJECTED:
                return (self._projection(_PROJECTED[role], layer)[0],)
            if role == "norms":
                return self._norms(layer)
            if role == "attn_weights":
                return (*self._there(self.family.paths("attn_in"), layer), *self.role_paths("attn_out_proj", layer))
            if role in _ADDED:
                self._refuse_scaled(point)
                role = _ADDED[role]
        if role == "mlp_out_proj" and getattr(point, "side", "") == "output" and not self.has_role(role, layer):
            role = _BLOCK if _BLOCK in self.family.roles else role
        return self.role_paths(role, layer)

    @property
    def attends(self) -> bool:
        """Whether every layer mixes its tokens by softmax attention, as far as the family says."""
        return not any(map(self.mixer, range(self.n_layers)))

    def mixer(self, layer: int) -> str:
        """Path of what mixes a layer's tokens where that is no softmax attention; empty where it is."""
        return next((path for path in self.family.mixers if self._has(layer, path)), "")

    def _require_heads(self, point: Point, layer: int) -> None:
        """Raise `KrsError` for a point of attention heads in a layer that has none."""
        if getattr(point, "heads_of", None) is None or not (mixer := self.mixer(layer)):
            return
        others = [str(i) for i in range(self.n_layers) if not self.mixer(i)]
        raise KrsError(
            f"layer {layer} of this {type(self.model).__name__} has no {point.name}, "
            f"{'only ' + ', '.join(others) + ' have' if others else 'and no other layer has'}: its tokens are mixed by "
            f"{mixer!r}, which is no softmax attention and has no heads of it. Leave that point out"
            f"{', or restore in windows of those layers' if others else ''} (attn_out is in every layer)"
        )

    def _there(self, paths: tuple[str, ...], layer: int) -> tuple[str, ...]:
        """Those paths that lead somewhere: queries may be projected in one step or in two (DeepSeek)."""
        return tuple(path for path in paths if self._has(layer, path)) or paths

    def _refuse_scaled(self, point: Point) -> None:
        by = getattr(self.model.config, "residual_multiplier", None)
        if by not in (None, 1):
            raise KrsError(
                f"{self.family.name} multiplies each branch by {by} before it is added, in no module of its own, so "
                f"{point.name} does not exist here: use {point.name.split('_')[0]}_out, which is before that"
            )

    def role_paths(self, role: str, layer: int) -> tuple[str, ...]:
        """The paths of a role in one layer; raises `KrsError` for one that the family, or this layer, does not have."""
        alternatives = self.family.alternatives(role)
        found = self._present(role, layer)
        if found is None and role in self.family.absent:
            others = [str(i) for i in range(self.n_layers) if self._present(role, i) is not None]
            if others:
                raise KrsError(
                    f"layer {layer} of this {type(self.model).__name__} has no {role}, only {', '.join(others)} have: "
                    f"{self.family.absent[role]}, or restore in windows of those layers"
                )
            raise KrsError(f"{self.family.name} models have no {role}: {self.family.absent[role]}")
        if found is None and role.startswith("moe_"):
            raise KrsError(f"layer {layer} of this {type(self.model).__name__} is no mixture of experts: leave it out")
        found = alternatives[0] if found is None else found
        return found[:1] if role == "moe_block" else found

    def has_role(self, role: str, layer: int) -> bool:
        """Whether a layer has what a role names."""
        return role in self.family.roles and self._present(role, layer) is not None

    def _present(self, role: str, layer: int) -> tuple[str, ...] | None:
        """The first alternative whose modules are all there."""
        return next((p for p in self.family.alternatives(role) if all(self._has(layer, path) for path in p)), None)

    def _has(self, layer: int, path: str) -> bool:
        try:
            self.layers[layer].get_submodule(path)
        except AttributeError:
            return False
        return True

    def path(self, point: Point, layer: int | None, which: int = 0) -> str:
        """The dotted path of a point's module, for messages."""
        return self._whole(self.paths(point, layer)[which], layer)

    def _whole(self, inside: str, layer: int | None) -> str:
        """A path in the model, of one inside a layer."""
        return inside if layer is None else ".".join(p for p in (self.family.layers, str(layer), inside) if p)

    def modules(self, point: Point, layer: int | None) -> list[nn.Module]:
        """The module, or modules, that a point at a layer is about.

        Raises `KrsError` for a layer out of range, and when the path leads nowhere.
        """
        return [self._follow(point, self._whole(inside, layer)) for inside in self.paths(point, layer)]

    def units(self, point: Point, layer: int | None) -> tuple[int, ...] | None:
        """Which entries of its module's last axis a point is about (rows, for a weight); `None` for all.

        Raises `KrsError` for chosen units or heads that are not there.
        """
        part = None
        if layer is not None and not point.role.startswith("."):
            self._require_heads(point, layer)
        if layer is not None and point.role in _PROJECTED and point.role not in self.family.roles:
            part = self._projection(_PROJECTED[point.role], layer)[1]
        if point.chosen is None:
            return part
        size = len(part) if part is not None else self._width(point, layer)
        numbers, each = point.chosen.numbers, 1
        if point.chosen.what == "heads":
            many = self.n_heads(point)
            each, size = size // many, many
        if numbers[-1] >= size:
            raise KrsError(
                f"{point!r}: {point.chosen.what[:-1]} {numbers[-1]} is out of range, there are {size}"
                f"{'' if layer is None else f' at layer {layer}'}"
            )
        inside = [n * each + i for n in numbers for i in range(each)]
        return tuple(inside) if part is None else tuple(part[i] for i in inside)

    def n_heads(self, point: Point) -> int:
        """How many heads a point has: query heads, or key-value heads."""
        heads = HeadCounts.of(self.model.config)
        return heads.query if getattr(point, "heads_of", "query") == "query" else heads.key

    def _end(self, point: Point) -> str:
        """The path of the token embedding or of the head."""
        model: Any = self.model
        module = model.get_input_embeddings() if point.place == "embedding" else model.get_output_embeddings()
        found = next((path for path, m in model.named_modules() if m is module), None) if module is not None else None
        if found is None:
            raise KrsError(f"this {type(self.model).__name__} has no module for {point.name}: leave that point out")
        return found

    def _projection(self, part: Projection, layer: int) -> tuple[str, tuple[int, ...] | None]:
        around = self.role_paths("attn_out_proj", layer)[0].rpartition(".")[0]
        attention = self.layers[layer].get_submodule(around)
        if hasattr(attention, "split_qkv_matrix"):  # a bridge's, which has a projection of its own for each part
            return f"{around}.{part[0]}", None
        name, units = find(part, lambda n: getattr(attention, n, None) is not None, self.model.config)
        return f"{around}.{name}" if around else name, units

    def _norms(self, layer: int) -> tuple[str, ...]:
        found = tuple(n for n, m in self.layers[layer].named_modules() if is_norm(m) and hasattr(core(m), "weight"))
        if not found:
            raise KrsError(f"layer {layer} of this {type(self.model).__name__} has no norms with weights")
        return found

    def _width(self, point: Point, layer: int | None) -> int:
        """How many entries the last axis of a point's value has."""
        (module,) = self.modules(point, layer)[:1]
        side = "in" if isinstance(point, WeightPoint) or getattr(point, "side", "") == "input" else "out"
        holder = core(module)
        if isinstance(known := getattr(holder, f"{side}_features", None), int):
            return known
        weight = getattr(holder, "weight", None)
        if isinstance(weight, Tensor) and weight.dim() in (1, 2):
            return weight.shape[-1 if side == "out" else 0]  # Conv1D, norms
        config: Any = self.model.config
        return int(config.hidden_size)

    def _follow(self, point: Point, path: str) -> nn.Module:
        try:
            return self.model.get_submodule(path)
        except AttributeError:
            raise KrsError(
                f"no module {path!r} for {point.name} in this {type(self.model).__name__}: its layout differs "
                f"from the family {self.family.name!r}. {self._remedy(point)}"
            ) from None

    def _remedy(self, point: Point) -> str:
        if point.role.startswith("."):
            return f"The point's role {point.role!r} is a path inside a layer: correct it"
        return "Register a family that fits (krs.hooks.register_family)"

    def require(self, points: Iterable[Point], layers: Iterable[int]) -> None:
        """Raise `KrsError` unless every point exists at every one of these layers.

        And for weights of one layer that another layer uses too: which of the two a restoration is of, nobody has said.
        """
        layers, points = list(layers), list(points)
        users = self._users() if any(p.kind == "weight" and p.place == "layer" for p in points) else {}
        for point in points:
            for layer in point.over(layers):
                modules = self.modules(point, layer)
                self.units(point, layer)
                if layer is not None and isinstance(point, WeightPoint):
                    self._refuse_shared(point, layer, modules, users)

    def _users(self) -> dict[int, set[int]]:
        """For each parameter of the layers, by its id, the layers that have it."""
        found: dict[int, set[int]] = {}
        for i, layer in enumerate(self.layers):
            for parameter in layer.parameters():
                found.setdefault(id(parameter), set()).add(i)
        return found

    def _refuse_shared(self, point: Point, layer: int, modules: list[nn.Module], users: dict[int, set[int]]) -> None:
        for parameter in (p for module in modules for p in module.parameters()):
            if others := users.get(id(parameter), set()) - {layer}:
                raise KrsError(
                    f"{point.named(layer)} is shared with layer {min(others)}, so that one cannot be put back without "
                    "the other: leave that point out, or give each layer a weight of its own (copy.deepcopy)"
                )

    def never_fired(self, point: Point, layer: int | None) -> str:
        """The message for a point whose module the model did not call."""
        return (
            f"{point.named(layer)} never fired: {self.path(point, layer)!r} was not called as a module while "
            "the model ran (a fused kernel, a functional linear, or a family whose path is wrong). Load the model "
            "without fused kernels, or correct the family with krs.hooks.register_family, then krs.hooks.self_check"
        )


def anatomy(model: object, side: str = "the model", family: Family | str | None = None) -> Anatomy:
    """Find out where a model's points are.

    >>> import krs
    >>> model, _ = krs.load("smollm2")
    >>> krs.hooks.anatomy(model).path(krs.MLP_COEF, 27)
    'model.layers.27.mlp.down_proj'

    Args:
        model: as in `krs.sweep`.
        side: what messages call it.
        family: the family, or a model type that is laid out alike, of a model whose own type is unknown.

    Raises `KrsError` for a compiled model, an unknown family, or a model that does not have the layers its
    family says it has.
    """
    plain = unwrap(model, side)
    config = getattr(plain, "config", None)
    with family_for(family):
        family = family_of(getattr(config, "model_type", None))
    try:
        layers = plain.get_submodule(family.layers)
    except AttributeError:
        raise KrsError(
            f"{side} ({type(plain).__name__}) has no {family.layers!r}, where the family {family.name!r} keeps "
            "its layers: pass the causal LM (AutoModelForCausalLM), not the bare decoder, or register a family"
        ) from None
    if not isinstance(layers, nn.ModuleList):
        raise KrsError(f"{family.layers!r} in {side} is {kind(layers)}, not a list of layers")
    return Anatomy(plain, family, layers)
