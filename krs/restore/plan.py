"""What a sweep is going to do, as a value: it prints and counts itself without a model.

>>> import krs
>>> plan = krs.Plan.make(["mlp_coef", "attn_out"], windows=5, n_layers=30)
>>> len(plan)
60
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from operator import index
from typing import Any

from krs._typing import Positions
from krs.errors import KrsError
from krs.hooks.interventions import Intervention
from krs.hooks.library import ATTN_OUT, MLP_COEF, VALUE_VECTORS
from krs.hooks.points import Place, Placement, Point, Setting
from krs.hooks.registry import setting
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
    """Every restoration of a sweep, in order: for each setting, each window.

    Attributes:
        settings: the curves.
        windows: the x axis: the embedding before the first layer, if some setting is there, the windows of layers, the
            unembedding behind the last one. A setting has the windows that it can be restored in.
        n_layers: of the models it is for.
        positions: which positions to restore activations at: `None` for all, `"prompt"`, `"answer"`, or indices into
            each prompt's tokens (see `TokenBatch.where`), `"scored"`, `"last_prompt"`, or indices for each prompt.
    """

    settings: tuple[Setting, ...]
    windows: tuple[Window, ...]
    n_layers: int
    positions: Positions = None

    @staticmethod
    def make(
        settings: Iterable[str | Point | Setting] | str | Point | Setting | None = None,
        windows: int | Shape = 5,
        *,
        n_layers: int,
        positions: Any = None,
    ) -> Plan:
        """A plan for a model of `n_layers` layers. Raises `KrsError` for what cannot be done."""
        chosen = check_settings(settings)
        return Plan(chosen, _axis(chosen, shape(windows).over(n_layers)), n_layers, check_positions(positions))

    @cached_property
    def cells(self) -> tuple[tuple[int, int], ...]:
        """For each restoration the numbers of its setting and its window."""
        pairs = product(enumerate(self.settings), enumerate(self.windows))
        return tuple((i, j) for (i, s), (j, w) in pairs if _fits(s, w))

    def __iter__(self) -> Iterator[Restoration]:
        return (Restoration(self.settings[i], self.windows[j], self.positions) for i, j in self.cells)

    def __len__(self) -> int:
        return len(self.cells)

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
        names = ", ".join(s.name for s in self.settings)
        where = "" if self.positions is None else f"; positions {self.positions}"
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


def for_prompts(positions: Positions, rows: slice) -> Positions:
    """Positions for some prompts of a batch: of indices for each prompt, those of these prompts."""
    if isinstance(positions, tuple) and positions and isinstance(positions[0], tuple):
        return positions[rows]
    return positions


def check_settings(
    given: Iterable[str | Point | Setting] | str | Point | Setting | None,
) -> tuple[Setting, ...]:
    """Settings from whatever names them; the paper's four for `None`."""
    if given is None:
        return PAPER_SETTINGS
    listed = [given] if isinstance(given, str | Point | Setting) else list(given)
    if not listed:
        raise KrsError("settings= is empty: name at least one, such as 'mlp_coef+attn_out'")
    found = tuple(setting(s) for s in listed)
    if len(set(found)) != len(found):
        raise KrsError(f"settings= names the same setting twice: {', '.join(s.name for s in found)}")
    return found


def check_positions(given: Any) -> Positions:
    """Positions in the form a plan keeps."""
    if given is None:
        return None
    if isinstance(given, str):
        if given in PARTS:
            return given
        raise KrsError(
            f"positions={given!r}: give None (all), {', '.join(map(repr, PARTS))}, a list of indices, or a list of "
            "indices for each prompt"
        )
    try:
        listed: list[Any] = [given] if isinstance(given, int) else list(given)
        if any(isinstance(p, Iterable) for p in listed):
            apart = tuple(tuple(index(p) for p in row) for row in listed)
            if not all(apart):
                raise KrsError(
                    "positions= has an empty list for a prompt, where nothing would be restored: leave it out"
                )
            return apart
        found = tuple(index(p) for p in listed)
    except TypeError:
        raise KrsError(f"positions={given!r}: positions are whole numbers, or lists of them for each prompt") from None
    if not found:
        raise KrsError("positions=[] restores nothing: give None for all positions")
    return found
