"""A sweep's numbers as tables: windows by settings, and tidy, a row a restoration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from krs._typing import DataFrame
from krs.errors import KrsError
from krs.restore.axes import column_index
from krs.restore.plan import Named, Plan, chosen_columns, names_of
from krs.restore.scores import Scores


def by_window(plan: Plan, values: Sequence[float] | np.ndarray) -> DataFrame:
    """A number a restoration as a table, windows by settings and places; NaN where a setting has no such window."""
    import pandas as pd

    table = plan.grid(values).transpose(1, 0, 2).reshape(len(plan.windows), -1)
    index = pd.Index([w.name for w in plan.windows], name="layer")
    return pd.DataFrame(table, index=index, columns=column_index(plan.columns, plan.part_name))


def in_order(plan: Plan, table: DataFrame) -> np.ndarray:
    """The numbers of such a table in the order of the tidy one's rows."""
    values = table.to_numpy(dtype=float).reshape(len(plan.windows), len(plan.settings), -1)
    return np.concatenate([values[window, setting] for setting, window in plan.cells])


def tidy(scores: Scores, per_prompt: bool) -> DataFrame:
    """See `SweepResult.to_frame`."""
    import pandas as pd

    plan, losses = scores.plan, scores.losses
    rows, score = [], "krs" if scores.direction == "restore" else "recovery"
    for r, restoration in enumerate(plan):
        window, having = restoration.window, scores.prompts(r)
        where = _where(plan, r)
        for n in range(len(losses.mask)) if per_prompt else [None]:
            part = having if n is None else having[having == n]
            mask = losses.mask[part]
            there = len(part) > 0
            rows.append(
                {
                    "setting": restoration.setting.name,
                    **where,
                    "window": window.name,
                    "first_layer": window.first,
                    "last_layer": window.last,
                    **({} if n is None else {"prompt": n}),
                    **({"prompts": len(part)} if plan.places and n is None else {}),
                    "loss": losses.restored[r, part][mask].mean() if there else np.nan,
                    "baseline": losses.baseline[part][mask].mean() if there else np.nan,
                    score: scores.of(r, part).value if there else np.nan,
                }
            )
    frame = pd.DataFrame(rows)
    if not all(w.layers for w in plan.windows):
        frame = frame.astype({"first_layer": "Int64", "last_layer": "Int64"})
    return frame


def _where(plan: Plan, restoration: int) -> dict[str, Any]:
    """The place of a restoration on the axes there are."""
    places = max(1, len(plan.places))
    setting, _ = plan.cells[restoration // places]
    _, axis = plan.by_setting[setting]
    found: dict[str, Any] = dict.fromkeys(dict.fromkeys(a.name for a in plan.axes))
    if axis is not None:
        found[axis.name] = axis.numbers[setting - axis.first]
    return found | ({"position": plan.places[restoration % places]} if plan.places else {})


def selected(scores: Scores, setting: Named, asked: Mapping[str, Any]) -> DataFrame:
    """The rows of the tidy table for a setting or an axis, and for what is asked of other columns, if it is not `None`.

    Raises `KrsError` for what was not swept.
    """
    plan, names = scores.plan, names_of(setting)
    chosen_columns(plan, setting)
    meant = [s.name for s, axis in plan.by_setting if names & {s.name, axis.point if axis else s.name}]
    frame = tidy(scores, per_prompt=False)
    frame = frame[frame.setting.isin(meant)]
    for name, value in asked.items():
        if value is None:
            continue
        there = frame[name].dropna().unique().tolist() if name in frame else []
        if value not in there:
            listed = ", ".join(map(str, there)) or "none"
            raise KrsError(f"there is no {name} {value!r} of {min(names)}: there are {listed}")
        frame = frame[frame[name] == value]
    return frame
