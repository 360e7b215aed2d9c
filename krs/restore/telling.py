"""What the figure of a sweep shows, in words, for whoever does not see it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from krs.metrics.measures import LOGIT_MSE
from krs.restore.pictures import caption, pair_of, part_name, value_label
from krs.restore.plan import Named, chosen_columns

if TYPE_CHECKING:
    from krs.restore.result import SweepResult
    from krs.restore.together import MeanResult


def title_and_description(
    result: SweepResult | MeanResult, measure: str = LOGIT_MSE.name, setting: Named | None = None
) -> tuple[str, str]:
    """A title of the figure that `result.plot` draws, and a description: of each line or map the highest number.

    Args:
        result: of a sweep, or a mean of some.
        measure: whose recovery is drawn.
        setting: the one that is drawn alone, if one is.
    """
    members: Any = getattr(result, "members", None)
    of = f"mean of {', '.join(result.names)}" if members else pair_of(result).strip()  # type: ignore[union-attr, arg-type]
    value = value_label(result.direction, measure)
    lines = "; ".join(f"{label}: {peak}" for label, peak in highest(result, measure, setting).items())
    return f"{value}{f': {of}' if of else ''}", f"{caption(result, measure)} {lines}."


def highest(result: SweepResult | MeanResult, measure: str, setting: Named | None = None) -> dict[str, str]:
    """By what figures call a setting: its highest recovery and where that is, by the names on the axes."""
    plan, table = result.plan, result.recovery(measure)
    groups: dict[str, list[int]] = {}
    for i in chosen_columns(plan, setting):
        groups.setdefault(plan.columns[i].label, []).append(i)
    found = {}
    for label, columns in groups.items():
        values = table.iloc[:, columns].to_numpy(dtype=float)
        if np.isnan(values).all():
            found[label] = "no number"
            continue
        row, best = np.unravel_index(np.nanargmax(values), values.shape)
        column = plan.columns[columns[int(best)]]
        place = [_window(plan.windows[int(row)].name)]
        place += [] if column.part is None else [f"{part_name(plan, columns[int(best)])} {column.part}"]
        place += [] if column.position is None else [f"position {column.position}"]
        found[label] = f"highest {values[row, best]:z.2f} at {', '.join(place)}"
    return found


def _window(name: int | str) -> str:
    if isinstance(name, int):
        return f"layer {name}"
    return f"layers {name}" if name[:1].isdigit() else f"{name}"
