"""What a sweep is going to do, as a value: it prints and counts itself without a model.

>>> import krs
>>> plan = krs.Plan.make(["mlp_coef", "attn_out"], windows=5, n_layers=30)
>>> len(plan)
60
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import Any, TypeAlias

import numpy as np

from krs._typing import Positions
from krs.errors import KrsError
from krs.hooks.interventions import Intervention
from krs.hooks.library import ATTN_OUT, MLP_COEF, VALUE_VECTORS
from krs.hooks.points import Each, Place, Placement, Point, Setting
from krs.hooks.registry import each
from krs.hooks.registry import setting as as_setting
from krs.prompts.listed import is_whole, listed
from krs.restore.axes import Axis, Column, HeadCount, columns, expanded
from krs.restore.windows import Shape, Window, shape
from krs.wording import counted

PAPER_SETTINGS: tuple[Setting, ...] = (
    Setting((MLP_COEF,)),
    Setting((VALUE_VECTORS,)),
    Setting((ATTN_OUT,)),
    MLP_COEF + ATTN_OUT,
)
"""The paper's four settings, in its order."""

PARTS = ("prompt", "answer", "scored", "last_prompt")
"""Parts of a prompt with its answer that positions may name."""

EACH = "each"
"""What `positions=` is for an axis of positions."""


Named: TypeAlias = str | Point | Setting | Each
Settings: TypeAlias = Iterable[Named] | Named | None


@dataclass(frozen=True)
class Restoration:
    """One setting restored in one window: one run of the unlearned model.

    Points at the ends of the model are restored there, whatever the window: in `EMBEDDING + MLP_COEF` the embedding is
    restored with every window of coefficients.
    """

    setting: Setting
    window: Window
    positions: Positions = None

    @property
    def interventions(self) -> frozenset[Intervention]:
        """What is done, in the layers of the window and at the ends of the model."""
        return frozenset(Intervention(p, None if p.kind == "weight" else self.positions) for p in self.setting.points)

    def at(self, where: int | Place) -> frozenset[Intervention]:
        """What is done in a layer, or at an end of the model."""
        if isinstance(where, int) and where not in self.window.layers:
            return frozenset()
        place = "layer" if isinstance(where, int) else where
        return frozenset(i for i in self.interventions if i.point.place == place)

    @property
    def placement(self) -> Placement:
        """The setting at the window's layers."""
        return self.setting.at(*self.window.layers)


@dataclass(frozen=True, repr=False)
class Plan:
    """Every restoration of a sweep, in order: for each setting, each window, in each window each place.

    Attributes:
        settings: the curves.
        windows: the x axis: the embedding before the first layer, if some setting is there, the windows of layers, the
            unembedding behind the last one. A setting has the windows that it can be restored in.
        n_layers: of the models it is for.
        positions: which positions to restore activations at: `None` for all, `"prompt"`, `"answer"`, or indices into
            each prompt's tokens (see `TokenBatch.where`), `"scored"`, `"last_prompt"`, or indices for each prompt.
            `"each"` makes them an axis.
        axes: settings that are the heads or units of one point.
        places: of an axis of positions, each position, counted from the answer's first token; none before the answers
            are known.
    """

    settings: tuple[Setting, ...]
    windows: tuple[Window, ...]
    n_layers: int
    positions: Positions = None
    axes: tuple[Axis, ...] = ()
    places: tuple[int, ...] = ()

    @staticmethod
    def make(
        settings: Settings = None,
        windows: int | Shape = 5,
        *,
        n_layers: int,
        positions: Any = None,
        n_heads: HeadCount = None,
    ) -> Plan:
        """A plan for a model of `n_layers` layers. Raises `KrsError` for what cannot be done.

        `n_heads`, a number or a function of the point, is how many heads `HEAD_OUT.each_head()` goes through.
        """
        found, axes = expanded(check_settings(settings), n_heads)
        _check_once(found)
        where = check_positions(positions)
        check_each(where, found)
        over = shape(windows).over(n_layers)
        if empty := [w.name for w in over if not w.layers]:
            raise KrsError(f"the window {empty[0]!r} has no layers, so nothing would be restored in it: leave it out")
        return Plan(found, _axis(found, over), n_layers, where, axes)

    def at_places(self, places: Iterable[int]) -> Plan:
        """The plan with these positions as its axis, if positions are an axis of it."""
        return replace(self, places=tuple(places)) if self.positions == EACH else self

    @cached_property
    def cells(self) -> tuple[tuple[int, int], ...]:
        """The numbers of each setting and window that it can be restored in; a restoration each, or one a place."""
        pairs = product(enumerate(self.settings), enumerate(self.windows))
        return tuple((i, j) for (i, s), (j, w) in pairs if _fits(s, w))

    def grid(self, values: Any) -> np.ndarray:
        """Numbers of restorations, `[restoration, …]`, as `[setting, window, place, …]`; NaN where there is none."""
        found = np.asarray(values, dtype=float)
        found = found.reshape(len(self.cells), max(1, len(self.places)), *found.shape[1:])
        whole = np.full((len(self.settings), len(self.windows), *found.shape[1:]), np.nan)
        whole[tuple(np.array(self.cells).T)] = found
        return whole

    def __iter__(self) -> Iterator[Restoration]:
        return (Restoration(self.settings[i], self.windows[j], p) for i, j in self.cells for p in self._where)

    def __len__(self) -> int:
        return len(self.cells) * len(self._where)

    @property
    def _where(self) -> tuple[Positions, ...]:
        return self.places if self.positions == EACH else (self.positions,)

    @property
    def columns(self) -> tuple[Column, ...]:
        """The columns of a table whose rows are windows: each setting, and in it each place."""
        return columns(self.settings, self.axes, self.places)

    @property
    def by_setting(self) -> list[tuple[Setting, Axis | None]]:
        """Each setting, and the axis that it is on."""
        of = {a.first + i: a for a in self.axes for i in range(len(a.numbers))}
        return [(s, of.get(i)) for i, s in enumerate(self.settings)]

    @property
    def part_name(self) -> str | None:
        """`"head"` or `"unit"` where settings are an axis of these, `"part"` for both, `None` for neither."""
        names = {axis.name for axis in self.axes}
        return "part" if len(names) > 1 else next(iter(names), None)

    @property
    def points(self) -> tuple[Point, ...]:
        """Every point that some setting restores."""
        return tuple(dict.fromkeys(p for s in self.settings for p in s.points))

    @property
    def layers(self) -> tuple[int, ...]:
        """Every layer that some window holds."""
        return tuple(sorted({layer for w in self.windows for layer in w.layers}))

    @property
    def layer_runs(self) -> tuple[int, int]:
        """Layers run for one prompt by one full forward a restoration, and those at or above a window's start.

        The second is what an engine has to do that does not repeat what lies below a window.
        """
        return len(self) * self.n_layers, sum(self.n_layers - self._start(r) for r in self)

    def _start(self, restoration: Restoration) -> int:
        """How many layers run before something is restored."""
        if "embedding" in restoration.setting.ends:
            return 0
        first = restoration.window.first
        return self.n_layers if first is None else first

    def __repr__(self) -> str:
        full, needed = self.layer_runs
        names = ", ".join(dict.fromkeys(c.setting for c in columns(self.settings, self.axes, ())))
        where = "" if self.positions is None else f"; positions {self.positions}"
        if self.positions == EACH:
            where = f"; each of {counted(len(self.places), 'position')}" if self.places else "; at each position"
        first, last = self.windows[0], self.windows[-1]
        return (
            f"Plan: {counted(len(self.settings), 'setting')} ({names}) x "
            f"{counted(len(self.windows), 'window')} ({first!r} … {last!r})"
            f" = {counted(len(self), 'restoration')}{where}; "
            f"{full} layer runs as full forwards, {needed} from each window up"
        )


def _axis(settings: Iterable[Setting], windows: tuple[Window, ...]) -> tuple[Window, ...]:
    """Windows of layers, if some setting has layers, and the ends that others are at: in the order of the model."""
    ends = {s.ends for s in settings if not s.has_layers}
    before = [Window("+".join(e), ()) for e in sorted(ends, key=len) if e[0] == "embedding"]
    behind = [Window("+".join(e), ()) for e in ends if e[0] == "unembedding"]
    return (*before, *(windows if any(s.has_layers for s in settings) else ()), *behind)


def _fits(setting: Setting, window: Window) -> bool:
    """Whether a setting can be restored in a window."""
    return bool(window.layers) if setting.has_layers else window.name == "+".join(setting.ends) and not window.layers


def chosen_columns(plan: Plan, setting: Named | None) -> list[int]:
    """The columns of a setting, or of an axis by its point; all of them for `None`."""
    if setting is None:
        return list(range(len(plan.columns)))
    names = names_of(setting)
    per = max(1, len(plan.places))
    found = [i for i, column in enumerate(plan.columns) if {column.setting, plan.settings[i // per].name} & names]
    if not found:
        there = ", ".join(dict.fromkeys(c.setting for c in plan.columns))
        raise KrsError(f"{min(names)!r} was not swept: this result has {there}")
    return found


def names_of(setting: Named) -> set[str]:
    """What a setting is called, the order of a sum's points aside; an axis is called as its point."""
    if (axis := each(setting)) is not None:
        return {axis.point.name}
    return {as_setting(setting).name}  # type: ignore[arg-type]


def for_prompts(positions: Positions, rows: slice) -> Positions:
    """Positions for some prompts of a batch: of indices for each prompt, those of these prompts."""
    if isinstance(positions, tuple) and positions and isinstance(positions[0], tuple):
        return positions[rows]
    return positions


def check_settings(given: Settings) -> tuple[Setting | Each, ...]:
    """Settings, and axes of them, from whatever names them; the paper's four for `None`."""
    if given is None:
        return PAPER_SETTINGS
    every = [given] if isinstance(given, str | Point | Setting | Each) else listed(given, "settings", "setting")
    if not every:
        raise KrsError("settings= is empty: name at least one, such as 'mlp_coef+attn_out'")
    found = tuple(each(s) or as_setting(s) for s in every)  # type: ignore[arg-type]
    _check_once(found)
    return found


def _check_once(found: tuple[Setting | Each, ...]) -> None:
    if len(set(found)) != len(found):
        names = (s.name if isinstance(s, Setting) else repr(s) for s in found)
        raise KrsError(f"settings= names the same setting twice: {', '.join(names)}")


def check_each(positions: Positions, settings: Iterable[Setting]) -> None:
    """Raise `KrsError` for an axis of positions with weights, which act at all of them."""
    if positions == EACH and (weights := [s for s in settings if any(p.kind == "weight" for p in s.points)]):
        raise KrsError(
            f"positions='each' does not go with {weights[0].name}, for a weight acts at every position: name settings "
            "of activations only, such as settings=['resid', 'mlp_out', 'attn_out']"
        )


def check_positions(given: Any) -> Positions:
    """Positions in the form a plan keeps."""
    if given is None:
        return None
    if isinstance(given, str):
        if given in (*PARTS, EACH):
            return given
        raise KrsError(
            f"positions={given!r}: give None (all), {', '.join(map(repr, PARTS))}, 'subject' (with subjects), 'each' "
            "(an axis), a list of indices, or a list of indices for each prompt"
        )
    ordered = sorted(given) if isinstance(given, set | frozenset) else given
    rows = [given] if is_whole(given) else listed(ordered, "positions", "position")
    if any(map(_is_row, rows)):
        apart = tuple(_indices(row if _is_row(row) else [row]) for row in rows)
        if not all(apart):
            raise KrsError("positions= has an empty list for a prompt, where nothing would be restored: leave it out")
        return apart
    found = _indices(rows)
    if not found:
        raise KrsError("positions=[] restores nothing: give None for all positions")
    return found


def _is_row(given: Any) -> bool:
    """Whether it is the positions of one prompt, and no position."""
    return isinstance(given, Iterable) and getattr(given, "ndim", 1) > 0


def _indices(given: Iterable[Any]) -> tuple[int, ...]:
    """Whole numbers; a list of truth values is a mask, which is something else."""
    found = list(given)
    if not all(map(is_whole, found)):
        raise KrsError(
            f"positions= has {found!r}: positions are whole numbers, or lists of them for each prompt. Of a mask, give "
            "those at which it is true"
        )
    return tuple(map(int, found))
