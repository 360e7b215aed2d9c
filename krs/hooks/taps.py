"""Places where a donor would change something: one side of one module, and the block that it is in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from krs.errors import KrsError
from krs.hooks.points import ActivationPoint, Point, WeightPoint
from krs.hooks.values import first_tensor, returned
from krs.hooks.weights import read_weight

Units = frozenset[int] | None


@dataclass(eq=False)
class Tap:
    """One side of one module, with what the donor would change there.

    Attributes:
        point: one of the points that it serves.
        which: of that point's modules.
        layer: where.
        module: the recipient's.
        other: the donor's.
        path: the module's, for messages.
        by_row: whether some point chooses rows of the weight, so that what each contributes is told apart.
        given: the donor's value there (activations).
        change: the donor's value less the recipient's own; by row, what the module is called with.
        edge: the value in the graph of the recipient's forward.
        order: which tap of that forward it was.
    """

    point: Point
    which: int
    layer: int
    module: nn.Module
    other: nn.Module
    path: str
    by_row: bool = False
    given: Tensor | None = None
    change: Tensor | None = None
    weight: Tensor | None = None
    edge: GradientEdge | None = None
    order: int = -1

    @property
    def replaces(self) -> bool:
        """Whether the donor's value takes the place of whatever comes in, so that nothing acts through it any more."""
        return self.point.kind == "activation"


@dataclass(eq=False)
class Entry:
    """Where a block is entered whose last module's input is a tap: an MLP, before its coefficients.

    What acts through the coefficients came in here, and the gradient here is at hand. From the coefficients back to
    here it would be half of a backward pass once more.
    """

    block: nn.Module
    point: ActivationPoint
    edge: GradientEdge | None = None


def is_whole(point: Point) -> bool:
    """Whether a point is every weight of a module."""
    return isinstance(point, WeightPoint) and point.whole


def change_of_weight(tap: Tap, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
    """What the donor's weight would add to the module's output, for what the module is called with."""
    if is_whole(tap.point):
        ours, theirs = (dict(m.named_parameters()) for m in (tap.module, tap.other))
        if ours.keys() != theirs.keys():
            raise KrsError(
                f"{tap.point.name} at layer {tap.layer}: the two models do not have the same parameters there: merge "
                "adapters first (merge_and_unload())"
            )
        given = {name: p.detach().to(ours[name]) for name, p in theirs.items()}
        return returned(torch.func.functional_call(tap.module, given, args, kwargs)) - output
    other = read_weight(tap.other, tap.path).detach()
    own = read_weight(tap.module, tap.path).detach()
    if own.dim() == 1:
        given = {"weight": other.to(own)}
        return returned(torch.func.functional_call(tap.module, given, args, kwargs)) - output
    _, value = first_tensor(args, kwargs)
    difference = other.to(own) - own
    if tap.by_row:
        tap.weight = difference
        return value.detach()
    return value.detach() @ difference.to(value)
