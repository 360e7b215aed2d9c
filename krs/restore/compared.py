"""Several sweeps beside each other, each by its name: one figure, one table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from textwrap import fill
from typing import Any

from krs._typing import Axes, DataFrame
from krs.errors import KrsError
from krs.metrics.measures import LOGIT_MSE
from krs.plots.compared import plot_compared
from krs.restore.averaging import MeanResult
from krs.restore.pictures import caption, check_drawable, value_label, x_label
from krs.restore.plan import Named, chosen_columns, names_of
from krs.restore.reading import escaped
from krs.restore.result import SweepResult
from krs.restore.telling import extremes, scale
from krs.wording import counted, kind

_WIDTH = 90
"""Characters of a line of a figure's title."""


@dataclass(frozen=True, repr=False, eq=False)
class Compared:
    """Results by name. Made by `krs.compare`.

    Attributes:
        results: of sweeps, or means of some.
    """

    results: Mapping[str, SweepResult | MeanResult]

    def plot(
        self,
        ax: Any = None,
        *,
        measure: str = LOGIT_MSE.name,
        level: float | None = 0.95,
        setting: Named | None = None,
    ) -> Axes:
        """A panel a setting, a line a result, with bands: the interval over prompts, or of a mean ± 1 SD.

        Args:
            ax: matplotlib axes for one setting, or an empty figure; a new figure if not given.
            measure: whose recovery is drawn.
            level: of the intervals; no bands for `None`.
            setting: this one alone; every one that some result has, if not given.

        Raises `KrsError` for maps, which cannot lie on each other, and for windows that have other names.
        """
        tables = self._tables(measure)
        first: Any = next(iter(self.results.values()))
        return plot_compared(
            tables,
            panels=self._panels(setting),
            edges={} if level is None else self._edges(measure, level),
            x_label=_x_label(list(self.results.values())),
            y_label=value_label(first.direction, measure),
            title="\n".join(fill(line.replace("$", "\\$"), _WIDTH) for line in self._about(level)),
            ax=ax,
        )

    def told(self, measure: str = LOGIT_MSE.name, setting: Named | None = None) -> tuple[str, str]:
        """A title of the figure that `plot` draws, and in words what it shows: of each line its ends, and the last."""
        self._tables(measure)
        listed, first = list(self.results.values()), next(iter(self.results.values()))
        value, x = value_label(first.direction, measure), _x_label(listed)
        title = f"{value}: {', '.join(self.results)}"
        shown = [f"{value} by {x[0].lower()}{x[1:]}, of {counted(len(listed), 'sweep')}: {', '.join(self.results)}."]
        shown += [f"{line[0].upper()}{line[1:]}." if i == 0 else f"{line}." for i, line in enumerate(self._about(0.95))]
        shown.append(scale(first.direction))
        for panel, label in self._panels(setting).items():
            having = {n: r for n, r in self.results.items() if panel in {s.name for s in r.plan.settings}}
            told = (f"{name} {extremes(result, measure)[label]}" for name, result in having.items())
            shown.append(f"{label}: {'; '.join(told)}.")
        return title, " ".join(shown)

    def to_frame(self, setting: Named | None = None, measure: str = LOGIT_MSE.name) -> DataFrame:
        """Every result's own `to_frame()`, one below the other, with its name in the column `sweep`.

        Args:
            setting: this one alone, of those that have it.
            measure: of a mean the one that is meant; of a sweep one that stands beside the logit MSE.
        """
        import pandas as pd

        frames = []
        for name, result in self._having(setting).items():
            frame = _rows(result, setting, measure)
            frame.insert(0, "sweep", name)
            frames.append(frame)
        return pd.concat(frames, ignore_index=True)

    def to_latex(self, measure: str = LOGIT_MSE.name, *, digits: int = 2, setting: Named | None = None) -> str:
        """Every result's own `to_latex(measure)`, with its name, escaped, before the caption.

        Args:
            measure: whose recovery.
            digits: behind the point.
            setting: this one alone, of those that have it.
        """
        having = self._having(setting)
        captions = {name: escaped(f"{name}: {caption(r.direction, measure, r.about)}") for name, r in having.items()}
        return "\n".join(
            r.to_latex(measure, digits=digits, caption=captions[n], setting=setting) for n, r in having.items()
        )

    def _having(self, setting: Named | None) -> dict[str, SweepResult | MeanResult]:
        """The results that have a setting, or an axis of that point; `KrsError` where none has it."""
        if setting is None:
            return dict(self.results)
        called = names_of(setting)
        having = {
            name: result
            for name, result in self.results.items()
            if called & ({c.setting for c in result.plan.columns} | {s.name for s in result.plan.settings})
        }
        if not having:
            there = ", ".join(dict.fromkeys(c.setting for r in self.results.values() for c in r.plan.columns))
            raise KrsError(f"{setting!r} was not swept in any of these: there are {there}")
        return having

    def _about(self, level: float | None) -> list[str]:
        """What the bands are, how many prompts each line is of, and which sweeps were interrupted."""
        prompts = {n: len(r.losses.mask) for n, r in self.results.items() if isinstance(r, SweepResult)}
        means = {n: len(r.members) for n, r in self.results.items() if isinstance(r, MeanResult)}
        kinds = (
            [f"{level:.0%} interval over prompts"] if level is not None and max(prompts.values(), default=0) > 1 else []
        )
        kinds += (
            ["± 1 SD between the sweeps of a mean"] if level is not None and max(means.values(), default=0) > 1 else []
        )
        of = [f"{name}: {counted(n, 'prompt')}" for name, n in prompts.items()]
        of += [f"{name}: mean of {counted(n, 'sweep')}" for name, n in means.items()]
        if not means and len(set(prompts.values())) == 1:
            of = [f"{counted(next(iter(prompts.values())), 'prompt')} each"]
        states = [f"{n} {said}" for n, r in self.results.items() if (said := getattr(r, "interrupted", ""))]
        bands = [f"bands: {' or '.join(kinds)}"] if kinds else []
        return [*bands, ", ".join(of), *states]

    def _tables(self, measure: str) -> dict[str, DataFrame]:
        """What is drawn; `KrsError` for what cannot lie in one figure."""
        if lacking := [name for name, result in self.results.items() if measure not in result.measures]:
            raise KrsError(
                f"{measure!r} was not measured in {lacking[0]!r}: sweep that one again with measures=[{measure!r}]"
            )
        tables = {name: result.recovery(measure) for name, result in self.results.items()}
        check_drawable({repr(name): table for name, table in tables.items()})
        if maps := [name for name, table in tables.items() if table.columns.nlevels > 1]:
            raise KrsError(f"{maps[0]!r} is a map of layers and an axis, which no other lies on: plot each alone")
        indices = [table.index for table in tables.values()]
        named = any(isinstance(window, str) for index in indices for window in index)
        if named and not all(index.equals(indices[0]) for index in indices):
            raise KrsError("these sweeps have other windows, with names that are no layers: plot each alone")
        return tables

    def _panels(self, setting: Named | None) -> dict[str, str]:
        there = {s.name: s.label for result in self.results.values() for s in result.plan.settings}
        if setting is None:
            return there
        chosen = {name: label for name, label in there.items() if name in names_of(setting)}
        if not chosen:
            raise KrsError(f"{setting!r} was not swept in any of these: there are {', '.join(there)}")
        return chosen

    def _edges(self, measure: str, level: float) -> dict[str, tuple[DataFrame, DataFrame]]:
        found = {}
        for name, result in self.results.items():
            if isinstance(result, MeanResult):
                mean, sd = result.recovery(measure), result.sd(measure).fillna(0.0)
                found[name] = (mean - sd, mean + sd)
            elif len(result.losses.mask) > 1:
                found[name] = result.interval(level, measure)
        return found

    def __repr__(self) -> str:
        lines = [f"{counted(len(self.results), 'result')} beside each other:"]
        return "\n".join(lines + [f"{name}: {result!r}" for name, result in self.results.items()])


def compare(results: Mapping[str, SweepResult | MeanResult]) -> Compared:
    """Results by name, to be drawn in one figure or written as one table; prompts, settings and models may differ.

    >>> import krs
    >>> vanilla, _ = krs.load("smollm2")
    >>> unlearned, _ = krs.load("smollm2")       # stands in for one that was unlearned: its last layer is disturbed
    >>> _ = unlearned.model.layers[29].mlp.up_proj.weight.data.mul_(1.5)
    >>> ask = {"settings": "mlp_coef", "windows": krs.windows.of([[29]]), "n_tokens": 2, "progress": False}
    >>> mine = krs.sweep(vanilla, unlearned, ["Hogwarts is a"], **ask)
    >>> krs.compare({"mine": mine, "again": mine}).to_frame()[["sweep", "setting", "window"]].values.tolist()
    [['mine', 'mlp_coef', 29], ['again', 'mlp_coef', 29]]

    Raises `KrsError` for what is no result, and for results of both directions.
    """
    if not isinstance(results, Mapping) or not results:
        raise KrsError("krs.compare takes results by name, at least one: krs.compare({'npo': first, 'ga': second})")
    for name, result in results.items():
        if not isinstance(result, SweepResult | MeanResult):
            raise KrsError(f"krs.compare: {name!r} is {kind(result)}, no result of krs.sweep or krs.mean")
    directions = {result.direction for result in results.values()}
    if len(directions) > 1:
        raise KrsError("krs.compare: some of these restore and some transplant, which are other scales: compare alike")
    return Compared({str(name): result for name, result in results.items()})


def _x_label(results: list[Any]) -> str:
    labels = {x_label(result.plan) for result in results}
    return labels.pop() if len(labels) == 1 else "Layer (the windows differ)"


def _rows(result: SweepResult | MeanResult, setting: Named | None, measure: str = LOGIT_MSE.name) -> DataFrame:
    """The rows of a result's `to_frame()` for a setting, or an axis of its point; all of them for `None`.

    Of a sweep, a further measure stands beside the logit MSE: its mean and its recovery.
    """
    if isinstance(result, MeanResult):
        frame, columns = result.to_frame(measure), result.plan.columns
        per = len(frame) // len(columns)  # a window each
        return frame.iloc[[i * per + n for i in chosen_columns(result.plan, setting) for n in range(per)]]
    frame = result.to_frame()
    if measure != LOGIT_MSE.name:
        tables = {measure: result.table(measure), f"{measure}_recovery": result.recovery(measure)}
        frame = frame.assign(**{name: result.in_order(table) for name, table in tables.items()})
    return frame if setting is None else frame.loc[result.sel(setting).index]
