"""What the figure of a sweep shows, in words, for whoever does not see it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from krs.metrics.measures import LOGIT_MSE
from krs.restore.pictures import caption, pair_of, part_name, value_label
from krs.restore.plan import Named, Plan, chosen_columns
from krs.wording import heights

if TYPE_CHECKING:
    from krs.restore.averaging import MeanResult
    from krs.restore.result import SweepResult


def title_and_description(
    result: SweepResult | MeanResult, measure: str = LOGIT_MSE.name, setting: Named | None = None
) -> tuple[str, str]:
    """A title of the figure that `result.plot` draws, and a description: of each line its ends, of a map the highest.

    Args:
        result: of a sweep, or a mean of some.
        measure: whose recovery is drawn.
        setting: the one that is drawn alone, if one is.
    """
    members: Any = getattr(result, "members", None)
    of = f"mean of {', '.join(result.names)}" if members else pair_of(result.provenance, result.direction)  # type: ignore[union-attr]
    value = value_label(result.direction, measure)
    lines = "; ".join(f"{label}: {peak}" for label, peak in extremes(result, measure, setting).items())
    state = f" ({found})" if (found := getattr(result, "interrupted", "")) else ""
    about = f"{caption(result.direction, measure, result.about)} {scale(result.direction)}"
    return f"{value}{f': {of}' if of else ''}{state}", f"{about} {lines}."


def scale(direction: str) -> str:
    """What the ends of the scale are."""
    if direction == "restore":
        return "0 is as unlearned, 1 the vanilla model."
    return "0 is the recipient as it is, 1 the donor."


def unfinished(result: SweepResult | MeanResult) -> set[int]:
    """The columns of `result.krs` some of whose restorations were not computed: those of an interrupted sweep."""
    if not getattr(result, "interrupted", ""):
        return set()
    done = result.plan.grid(result.losses.computed.all(axis=1))  # type: ignore[union-attr]
    return set(np.flatnonzero((done == 0).any(axis=1).ravel()).tolist())


def extremes(result: SweepResult | MeanResult, measure: str, setting: Named | None = None) -> dict[str, str]:
    """By what figures call a setting: its highest recovery and where that is, by the names on the axes.

    Of a curve the lowest and the last one too.
    """
    plan, table, missing = result.plan, result.recovery(measure), unfinished(result)
    groups: dict[str, list[int]] = {}
    for i in chosen_columns(plan, setting):
        groups.setdefault(plan.columns[i].label, []).append(i)
    found = {}
    for label, columns in groups.items():
        values = table.iloc[:, columns].to_numpy(dtype=float).ravel()
        places = [_place(plan, row, column) for row in range(len(plan.windows)) for column in columns]
        so_far = bool(missing & set(columns))
        found[label] = heights(values.tolist(), places, so_far=so_far, curve=len(columns) == 1)
    return found


def _place(plan: Plan, row: int, column: int) -> str:
    """Where a number of the table stands, by the names on the axes."""
    where = plan.columns[column]
    place = [_window(plan.windows[row].name)]
    place += [] if where.part is None else [f"{part_name(plan, column)} {where.part}"]
    place += [] if where.position is None else [f"position {where.position}"]
    return ", ".join(place)


def _window(name: int | str) -> str:
    if isinstance(name, int):
        return f"layer {name}"
    return f"layers {name}" if name[:1].isdigit() else f"{name}"
