"""Which rows a pass carries, layer by layer: a pure function of a plan.

A row is a residual stream of the unlearned model with something restored below. Row 0 is the base, with nothing
restored. Restorations that have restored the same things so far are one row, so a restoration costs nothing below
its window, and windows that begin alike share their beginning.

>>> from krs.restore.plan import Plan
>>> steps, last, _ = schedule(Plan.make("attn_out", windows=1, n_layers=3))
>>> [len(step) for step in steps], last
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


def schedule(
    plan: Plan, restorations: Sequence[Restoration] | None = None
) -> tuple[tuple[Step, ...], tuple[int, ...], Step]:
    """For each layer its rows, row 0 the base; for each restoration the row that it is in the end; and the rows that
    there are before the first layer, which have another embedding.

    Args:
        plan: what is to be restored; all of it, unless `restorations` names a part.
    """
    steps, at = zip(*_walk(plan, list(plan) if restorations is None else list(restorations)), strict=True)
    return steps[1:], at[-1], steps[0]


def rows_behind(plan: Plan, restorations: Sequence[Restoration]) -> tuple[tuple[int, ...], ...]:
    """For each layer the row that each of some restorations is in behind it, where `schedule` has only these.

    >>> from krs.restore.plan import Plan
    >>> plan = Plan.make("attn_out", windows=1, n_layers=3)
    >>> rows_behind(plan, list(plan))
    ((1, 0, 0), (1, 2, 0), (1, 2, 3))
    """
    return tuple(at for _, at in _walk(plan, list(restorations)))[1:]


def _walk(plan: Plan, wanted: list[Restoration]) -> Iterator[tuple[Step, tuple[int, ...]]]:
    """From the embedding through the layers: the rows there, and which of them each restoration is in."""
    at = [0] * len(wanted)
    places: list[int | Place] = ["embedding", *range(plan.n_layers)]
    for place in places:
        rows: dict[Row, int] = {Row(0, frozenset()): 0}
        for i, restoration in enumerate(wanted):
            at[i] = rows.setdefault(Row(at[i], restoration.at(place)), len(rows))
        yield tuple(rows), tuple(at)
