"""Weights of points read and replaced: in the layers in place, at the ends of a model in one use only.

A token embedding and a head may be one parameter (tied). What is restored there is what that end makes of it: the
module's forward is replaced while the block is open, and the parameter, which the other end may use too, stays.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from jaxtyping import Shaped
from torch import Tensor, nn

from krs.errors import KrsError
from krs.hooks.adapters import merged_layer
from krs.hooks.linear import LinearMap, is_packed
from krs.hooks.points import Point
from krs.hooks.unwrap import core, is_adapter, outside
from krs.hooks.weights import forward_replaced, linear_map, read_weight, refuse_offloaded, replace_weight


class OtherTable:
    """The forward of a token embedding with another weight: scale, padding row and all else are the module's own.

    Attributes:
        weight: `[vocab, d]`.
    """

    def __init__(self, module: nn.Module, weight: Shaped[Tensor, "vocab d"]) -> None:
        self.weight = weight
        self._twin: Any = copy.copy(core(module))
        self._twin._parameters = {**self._twin._parameters, "weight": nn.Parameter(weight, requires_grad=False)}

    def __call__(self, ids: Tensor) -> Tensor:
        """`[…] -> […, d]`."""
        return type(self._twin).forward(self._twin, ids.to(self.weight.device))


def read_point(point: Point, module: nn.Module, path: str) -> Shaped[Tensor, "in *out"]:
    """The weight of a weight point's module, `[in, out]`: `[vocab, d]` of an embedding, `[d, vocab]` of a head.

    Raises `KrsError` as `krs.hooks.weights.linear_map` does.
    """
    if point.place != "embedding":
        return read_weight(module, path)
    holder = outside(module)
    replaced = holder.__dict__.get("forward")
    if isinstance(replaced, OtherTable):
        return replaced.weight
    refuse_offloaded(holder, path)
    found = merged_layer(holder, path) if is_adapter(holder) else core(module)
    weight = found._parameters.get("weight")
    if weight is None or weight.dim() != 2 or is_packed(found):
        raise KrsError(f"{path} ({type(module).__name__}) has no plain table of vectors: load the model unquantised")
    return weight


def replace_point(point: Point, module: nn.Module, path: str, value: Shaped[Tensor, "in *out"]) -> Callable[[], None]:
    """Make a weight point's module apply `value` (`[in, out]`); returns the function that undoes it, bit for bit.

    At the ends of a model the module's forward is replaced, so that what is tied to it keeps its weight.
    """
    if point.place == "layer":
        return replace_weight(module, path, value)
    own = read_point(point, module, path)
    if tuple(value.shape) != tuple(own.shape):
        raise KrsError(
            f"{path}: the weight is {list(own.shape)} ([in, out]) and cannot take a value of {list(value.shape)}: the "
            "two models must have the same shape"
        )
    new = value.detach().to(own)
    if point.place == "embedding":
        return forward_replaced(module, OtherTable(module, new))
    return forward_replaced(module, LinearMap(new, linear_map(module, path).bias))
