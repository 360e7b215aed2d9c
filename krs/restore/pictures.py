"""The picture that a result is: which tables `krs.plots` gets, with which words."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from krs._typing import Axes, DataFrame
from krs.errors import KrsError
from krs.metrics.measures import LOGIT_MSE, measure_label
from krs.plots import plot_lines, plot_maps
from krs.restore.plan import Named, Plan, chosen_columns
from krs.wording import counted

if TYPE_CHECKING:
    from krs.restore.result import SweepResult


def draw(result: SweepResult, ax: Any, measure: str, level: float | None, setting: Named | None) -> Axes:
    """Curves over the windows, or a map for each setting where there is an axis."""
    table, value = result.recovery(measure), value_label(result.direction, measure)
    check_drawable({"the result": table})
    title = f"{pair_of(result)}{'estimated; ' if result.estimated else ''}{_size(result)}"
    if table.columns.nlevels > 1:
        return draw_maps(result.plan, table, value, title, ax, setting, _ticks(result))
    chosen = chosen_columns(result.plan, setting)
    low = high = None
    if level is not None and len(result.losses.mask) > 1:
        low, high = (edge.iloc[:, chosen] for edge in result.interval(level, measure))
        title += f"\nband: {level:.0%} interval over prompts"
    return plot_lines(
        table.iloc[:, chosen],
        labels=[result.plan.settings[i].label for i in chosen],
        low=low,
        high=high,
        x_label=x_label(result.plan),
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


def pair_of(result: SweepResult) -> str:
    """Both models by name, on a line of its own; nothing where they have none."""
    names = []
    for side in ("unlearned", "vanilla"):
        made = result.provenance.get(side, {})
        name = made.get("name_or_path") or made.get("given_as") or ""
        names.append(Path(str(name)).name)
    if not all(names) or names[0] == names[1]:
        return ""
    recipient, donor = names if result.direction == "restore" else names[::-1]
    return f"{recipient}, from {donor}\n"


def caption(result: Any, measure: str) -> str:
    """What a table of a sweep, or of a mean, shows: the measure, of which models, what its rows are, of how many."""
    return f"{value_label(result.direction, measure)}; {about(result)}."


def about(result: Any) -> str:
    """Both models, what the windows are, and of how many prompts or sweeps the numbers are."""
    rows = x_label(result.plan)
    told = [f"by {rows[0].lower()}{rows[1:]}"]
    if (names := getattr(result, "names", None)) is not None:
        told.append(f"mean of {counted(len(names), 'sweep')} with standard deviation: {', '.join(names)}")
        return "; ".join(told)
    pair = pair_of(result).strip()
    return "; ".join([*([pair] if pair else []), *(["estimated"] if result.estimated else []), *told, _size(result)])


def _size(result: SweepResult) -> str:
    mask = result.losses.mask
    return f"{counted(len(mask), 'prompt')}, {counted(int(mask.sum()), 'scored token')}"


def _ticks(result: SweepResult) -> list[str] | None:
    """The tokens at the positions, where there is one prompt and its text is known."""
    if len(result.pieces) != 1 or not result.plan.places:
        return None
    begins = len(result.token_ids[0][0])
    texts = [result.pieces[0][begins + place] for place in result.plan.places]
    return [text.replace("\n", "\\n") for text in texts]
