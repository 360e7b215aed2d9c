"""The picture that a table is: what `krs.plots` gets, with which words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from krs._typing import Axes, DataFrame
from krs.errors import KrsError
from krs.metrics.measures import LOGIT_MSE, measure_label
from krs.names import called
from krs.plots import plot_lines, plot_maps
from krs.prompts import Ids
from krs.restore.plan import Named, Plan, chosen_columns
from krs.wording import counted


def draw_curves(
    plan: Plan,
    table: DataFrame,
    value: str,
    title: str,
    ax: Any,
    setting: Named | None,
    band: tuple[float, DataFrame, DataFrame] | None = None,
) -> Axes:
    """Curves over the windows; a band has the level of an interval, and from where to where it reaches."""
    chosen = chosen_columns(plan, setting)
    low = high = None
    if band is not None:
        low, high = (edge.iloc[:, chosen] for edge in band[1:])
        title += f"\nband: {band[0]:.0%} interval over prompts"
    return plot_lines(
        table.iloc[:, chosen],
        labels=[plan.settings[i].label for i in chosen],
        low=low,
        high=high,
        x_label=x_label(plan),
        y_label=value,
        title=title,
        ax=ax,
    )


def check_drawable(tables: Mapping[str, DataFrame]) -> None:
    """Raise `KrsError` for the first table that has no number at all."""
    for name, table in tables.items():
        if not table.notna().to_numpy().any():
            raise KrsError(
                f"there is nothing to draw: {name} has no number, as of a sweep that was interrupted early, and that "
                "the same call goes on with"
            )


def draw_maps(
    plan: Plan, table: DataFrame, value: str, title: str, ax: Any, setting: Named | None, ticks: list[str] | None = None
) -> Axes:
    """A map for each setting, or axis of settings, and of these for each head where positions are an axis too."""
    maps: dict[str, list[int]] = {}
    chosen = chosen_columns(plan, setting)
    for i in chosen:
        column = plan.columns[i]
        by_part = column.position is not None and column.part is not None
        name = f"{column.label}, {part_name(plan, i)} {column.part}" if by_part else column.label
        maps.setdefault(name, []).append(i)
    positions = bool(plan.places)
    tables = {name: table.iloc[:, columns] for name, columns in maps.items()}
    for name, columns in maps.items():
        tables[name] = tables[name].set_axis(
            [plan.columns[i].position if positions else _part(plan, i) for i in columns], axis=1
        )
    parts = {part_name(plan, i) for i in chosen}
    x = "Position, from the answer's first token" if positions else " or ".join(sorted(parts)).capitalize()
    if ticks is not None and positions:
        x = "Token; the line is where the answer begins"
    options: dict[str, Any] = {"x_label": x, "y_label": x_label(plan), "value_label": value, "title": title}
    divide = plan.places.index(0) if 0 in plan.places[1:] else None
    return plot_maps(tables, **options, ticks=ticks, divide=divide, ax=ax)


def part_name(plan: Plan, column: int) -> str:
    """`"head"` or `"unit"` for a column of an axis, else `"setting"`."""
    index = column // max(1, len(plan.places))
    return next((a.name for a in plan.axes if a.first <= index < a.first + len(a.numbers)), "setting")


def _part(plan: Plan, column: int) -> int | str:
    part = plan.columns[column].part
    return "all" if part is None else part


def x_label(plan: Plan) -> str:
    """What the windows are."""
    widest, narrowest = (most(len(w) for w in plan.windows) for most in (max, min))
    if not all(isinstance(w.name, int) for w in plan.windows):
        return "Layers restored"
    if widest == 1:
        return "Layer"
    central = all(w.name == w.layers[(widest - 1) // 2] for w in plan.windows if len(w) == widest)
    size = widest if widest == narrowest else f"up to {widest}"
    return f"Layer ({'centre of a window' if central else 'window'} of {size} layers)"


def value_label(direction: str, measure: str) -> str:
    """What the numbers are."""
    if measure == LOGIT_MSE.name:
        return "Knowledge Recovery Score" if direction == "restore" else "Recovery of the logit MSE"
    return f"Recovery: {measure_label(measure)}"


def pair_of(provenance: Mapping[str, Any], direction: str) -> str:
    """Both models by name; nothing where they have none."""
    names = [Path(called(provenance.get(side, {}))).name for side in ("unlearned", "vanilla")]
    if not all(names) or names[0] == names[1]:
        return ""
    recipient, donor = names if direction == "restore" else names[::-1]
    return f"{recipient}, from {donor}"


def caption(direction: str, measure: str, about: str) -> str:
    """What a table shows: the measure, and whatever it is about."""
    return f"{value_label(direction, measure)}; {about}."


def rows_of(plan: Plan) -> str:
    """What the windows are, as a sentence goes on."""
    rows = x_label(plan)
    return f"by {rows[0].lower()}{rows[1:]}"


def size_of(mask: Bool[np.ndarray, "prompt token"]) -> str:
    """Of how many prompts and tokens the numbers are."""
    return f"{counted(len(mask), 'prompt')}, {counted(int(mask.sum()), 'scored token')}"


def ticks_of(plan: Plan, token_ids: Sequence[tuple[Ids, Ids]], pieces: Sequence[Sequence[str]]) -> list[str] | None:
    """The tokens at the positions, where there is one prompt and its text is known."""
    if len(pieces) != 1 or not plan.places:
        return None
    begins = len(token_ids[0][0])
    texts = [pieces[0][begins + place] for place in plan.places]
    return [text.replace("\n", "\\n") for text in texts]
