"""What a restoration does in one layer, as a value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from krs._typing import Positions
from krs.hooks.points import Point
from krs.hooks.values import put


@dataclass(frozen=True, repr=False)
class Intervention:
    """The donor's value of a point in place of the recipient's own.

    >>> from krs import HEAD_OUT
    >>> Intervention(HEAD_OUT.heads(3), "prompt")
    head_out.heads(3) at positions 'prompt'

    Attributes:
        point: what is put, units and heads chosen included.
        positions: where; `None` for every position, and for weights, which act at all of them.
    """

    point: Point
    positions: Positions = None

    @property
    def is_whole(self) -> bool:
        """Whether nothing of the recipient's own value is left."""
        return self.positions is None and self.point.chosen is None

    def apply(
        self, own: Tensor, donor: Tensor, where: Tensor | None = None, units: Sequence[int] | Tensor | None = None
    ) -> Tensor:
        """The value after the intervention, `[batch, position, …, unit]`; `own` is not written to.

        Args:
            own: the recipient's value.
            donor: the donor's, as wide.
            where: bool `[batch, position]`: the positions of this batch that are meant; `None` for all.
            units: the entries of the last axis that are meant; `None` for all.
        """
        return put(own, donor, where, units)

    def __repr__(self) -> str:
        return repr(self.point) if self.positions is None else f"{self.point!r} at positions {self.positions!r}"
