"""Where the points of one particular model are: its family's paths, followed and checked."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from krs.errors import KrsError
from krs.hooks.families import Family, family_of
from krs.hooks.points import Point
from krs.hooks.unwrap import unwrap


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

    def path(self, point: Point, layer: int, which: int = 0) -> str:
        """The dotted path of a point's module, for messages."""
        inside = self.family.paths(point.role)[which]
        return ".".join(part for part in (self.family.layers, str(layer), inside) if part)

    def modules(self, point: Point, layer: int) -> list[nn.Module]:
        """The module, or modules, that a point at a layer is about.

        Raises `KrsError` for a layer out of range, and when the path leads nowhere.
        """
        if not 0 <= layer < self.n_layers:
            raise KrsError(
                f"layer {layer} is out of range: this model has {self.n_layers} layers, 0 to {self.n_layers - 1}"
            )
        return [self._follow(point, layer, i) for i in range(len(self.family.paths(point.role)))]

    def _follow(self, point: Point, layer: int, which: int) -> nn.Module:
        path = self.path(point, layer, which)
        try:
            return self.model.get_submodule(path)
        except AttributeError:
            raise KrsError(
                f"no module {path!r} for {point.name} in this {type(self.model).__name__}: its layout differs "
                f"from the family {self.family.name!r}. Register a family that fits (krs.hooks.register_family)"
            ) from None

    def require(self, points: Iterable[Point], layers: Iterable[int]) -> None:
        """Raise `KrsError` unless every point exists at every one of these layers."""
        layers = list(layers)
        for point in points:
            for layer in layers:
                self.modules(point, layer)

    def never_fired(self, point: Point, layer: int) -> str:
        """The message for a point whose module the model did not call."""
        return (
            f"{point.name} at layer {layer} never fired: {self.path(point, layer)!r} was not called as a module while "
            "the model ran (a fused kernel, a functional linear, or a family whose path is wrong). Load the model "
            "without fused kernels, or correct the family with krs.hooks.register_family, then krs.hooks.self_check"
        )


def anatomy(model: object, side: str = "the model") -> Anatomy:
    """Find out where a model's points are.

    >>> import krs
    >>> model, _ = krs.load("smollm2")
    >>> krs.hooks.anatomy(model).path(krs.MLP_COEF, 27)
    'model.layers.27.mlp.down_proj'

    Raises `KrsError` for a compiled model, an unknown family, or a model that does not have the layers its
    family says it has.
    """
    plain = unwrap(model, side)
    config = getattr(plain, "config", None)
    family = family_of(getattr(config, "model_type", None))
    try:
        layers = plain.get_submodule(family.layers)
    except AttributeError:
        raise KrsError(
            f"{side} ({type(plain).__name__}) has no {family.layers!r}, where the family {family.name!r} keeps "
            "its layers: pass the causal LM (AutoModelForCausalLM), not the bare decoder, or register a family"
        ) from None
    if not isinstance(layers, nn.ModuleList):
        raise KrsError(f"{family.layers!r} in {side} is a {type(layers).__name__}, not a list of layers")
    return Anatomy(plain, family, layers)
