"""The axes of a plan beside settings and windows: each position, each head, each of some units.

>>> from krs import HEAD_OUT, Plan
>>> plan = Plan.make(HEAD_OUT.heads(0, 3).each(), windows=1, n_layers=4)
>>> [column.part for column in plan.columns], len(plan)
([0, 3], 8)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from krs.hooks.points import Each, Point, Setting

HeadCount = int | Callable[[Point], int] | None


@dataclass(frozen=True)
class Axis:
    """Settings of a plan, one behind the other, that are one point's heads or units.

    Attributes:
        name: `"head"` or `"unit"`.
        point: the point's name.
        label: the point's label, for figures.
        first: which of the plan's settings is the first of them.
        numbers: the heads or units, in the settings' order.
    """

    name: Literal["head", "unit"]
    point: str
    label: str
    first: int
    numbers: tuple[int, ...]


@dataclass(frozen=True)
class Column:
    """One column of a result's tables.

    Attributes:
        setting: the setting's name; of an axis the name of its point.
        label: the same for figures.
        part: the head or unit, `None` for a setting that is no part of an axis.
        position: counted from the answer's first token; `None` where positions are no axis.
    """

    setting: str
    label: str
    part: int | None = None
    position: int | None = None


def expanded(given: Iterable[Setting | Each], n_heads: HeadCount) -> tuple[tuple[Setting, ...], tuple[Axis, ...]]:
    """Every setting by itself, and which of them are an axis.

    Args:
        given: settings and axes.
        n_heads: how many heads a point has, for an axis of all of them.
    """
    settings: list[Setting] = []
    axes = []
    for one in given:
        if isinstance(one, Setting):
            settings.append(one)
            continue
        count = n_heads(one.point) if callable(n_heads) else n_heads
        found = one.settings(count)
        numbers = tuple(range(len(found))) if one.numbers is None else one.numbers
        name: Literal["head", "unit"] = "head" if one.what == "heads" else "unit"
        axes.append(Axis(name, one.point.name, one.point.label, len(settings), numbers))
        settings += found
    return tuple(settings), tuple(axes)


def columns(settings: Sequence[Setting], axes: Iterable[Axis], places: Sequence[int]) -> tuple[Column, ...]:
    """The columns of a table: each setting, and in it each place."""
    parts = {axis.first + i: (axis, n) for axis in axes for i, n in enumerate(axis.numbers)}
    found = []
    for i, setting in enumerate(settings):
        axis, number = parts.get(i, (None, None))
        name, label = (setting.name, setting.label) if axis is None else (axis.point, axis.label)
        found += [Column(name, label, number, place) for place in (places or [None])]  # type: ignore[list-item]
    return tuple(found)


def column_index(columns: Sequence[Column], part_name: str | None) -> Any:
    """Columns as pandas has them: settings alone, or several levels where there are axes.

    Args:
        columns: of a plan.
        part_name: what the level of heads or units is called; `None` for no such level.
    """
    import pandas as pd

    levels: dict[str, list[Any]] = {"setting": [c.setting for c in columns]}
    if part_name is not None:
        levels[part_name] = ["all" if c.part is None else c.part for c in columns]
    if any(c.position is not None for c in columns):
        levels["position"] = [c.position for c in columns]
    if len(levels) == 1:
        return pd.Index(levels["setting"])
    return pd.MultiIndex.from_arrays(list(levels.values()), names=list(levels))
