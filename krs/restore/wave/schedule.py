"""Which rows a pass carries, layer by layer: a pure function of a plan.

A row is a residual stream of the unlearned model with something restored below. Row 0 is the base, with nothing
restored. Restorations that have restored the same things so far are one row, so a restoration costs nothing below
its window, and windows that begin alike share their beginning.

>>> from krs.restore.plan import Plan
>>> found = schedule(Plan.make("attn_out", windows=1, n_layers=3))
>>> [len(step) for step in found.steps], found.at[-1]
([2, 3, 4], (1, 2, 3))
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from krs.hooks.interventions import Intervention
from krs.hooks.points import Place
from krs.restore.plan import Plan, Restoration

Interventions: TypeAlias = frozenset[Intervention]


@dataclass(frozen=True)
class Row:
    """A row as it leaves a layer, or the embedding: the row that it was before, and what is put into it there."""

    parent: int
    interventions: Interventions


Step: TypeAlias = tuple[Row, ...]


@dataclass(frozen=True)
class Schedule:
    """Which rows there are where.

    Attributes:
        start: the rows that there are before the first layer, which have another embedding; row 0 is the base.
        steps: for each layer its rows, row 0 the base.
        at: for each layer, the row that each restoration is in behind it.
    """

    start: Step
    steps: tuple[Step, ...]
    at: tuple[tuple[int, ...], ...]

    @property
    def layer_runs(self) -> int:
        """Rows of all layers together."""
        return sum(map(len, self.steps))


def schedule(plan: Plan, restorations: Sequence[Restoration] | None = None) -> Schedule:
    """The rows of a plan, all of it unless `restorations` names a part.

    >>> from krs.restore.plan import Plan
    >>> schedule(Plan.make("attn_out", windows=1, n_layers=3)).at
    ((1, 0, 0), (1, 2, 0), (1, 2, 3))
    """
    steps, at = zip(*_walk(plan, list(plan) if restorations is None else list(restorations)), strict=True)
    return Schedule(steps[0], steps[1:], at[1:])


def _walk(plan: Plan, wanted: list[Restoration]) -> Iterator[tuple[Step, tuple[int, ...]]]:
    """From the embedding through the layers: the rows there, and which of them each restoration is in."""
    at = [0] * len(wanted)
    places: list[int | Place] = ["embedding", *range(plan.n_layers)]
    for place in places:
        rows: dict[Row, int] = {Row(0, frozenset()): 0}
        for i, restoration in enumerate(wanted):
            at[i] = rows.setdefault(Row(at[i], restoration.at(place)), len(rows))
        yield tuple(rows), tuple(at)
