"""The mean of several results with its spread: `krs.mean`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from krs._typing import Axes, DataFrame
from krs.errors import KrsError
from krs.metrics.measures import LOGIT_MSE
from krs.names import called
from krs.notebook import as_html
from krs.plots import mean_and_sd, plot_lines
from krs.restore import pictures, reading, storage
from krs.restore.alike import joint_plan, several
from krs.restore.plan import Named, Plan, chosen_columns
from krs.restore.result import SweepResult
from krs.wording import as_text, counted


@dataclass(frozen=True, repr=False, eq=False)
class MeanResult:
    """The mean of several results, with their spread. Made by `krs.mean`.

    Attributes:
        members: the results.
        names: what each is called.
    """

    members: tuple[SweepResult, ...]
    names: tuple[str, ...]

    @property
    def plan(self) -> Plan:
        """What was restored in every member; of an axis of positions, every place that some member has."""
        return joint_plan(self.members)

    @property
    def direction(self) -> str:
        """As the members'."""
        return self.members[0].direction

    @property
    def measures(self) -> tuple[str, ...]:
        """What was measured in every member, by the same function."""
        first, *others = (_measured(r) for r in self.members)
        return tuple(m for m, which in first.items() if all(r.get(m) == which for r in others))

    @property
    def krs(self) -> DataFrame:
        """The members' mean score: a row a window, a column a setting. Raises `KrsError` for transplants."""
        return self._mean([r.krs for r in self.members])

    def recovery(self, measure: str = LOGIT_MSE.name) -> DataFrame:
        """The mean of the members' `recovery(measure)`, of those that have a number there; see `n`."""
        return self._mean(self._recoveries(measure))

    def table(self, measure: str = LOGIT_MSE.name) -> DataFrame:
        """The mean of the members' `table(measure)`."""
        self._check(measure)
        return self._mean([r.table(measure) for r in self.members])

    def sd(self, measure: str = LOGIT_MSE.name) -> DataFrame:
        """The standard deviation of `recovery(measure)` between members (n - 1); NaN for fewer than two."""
        tables = self._recoveries(measure)
        return self._like(mean_and_sd(self._stacked(tables))[1], tables)

    def min(self, measure: str = LOGIT_MSE.name) -> DataFrame:
        """The smallest `recovery(measure)` of a member."""
        tables = self._recoveries(measure)
        return self._like(np.fmin.reduce(self._stacked(tables)), tables)

    def max(self, measure: str = LOGIT_MSE.name) -> DataFrame:
        """The largest `recovery(measure)` of a member."""
        tables = self._recoveries(measure)
        return self._like(np.fmax.reduce(self._stacked(tables)), tables)

    def n(self, measure: str = LOGIT_MSE.name) -> DataFrame:
        """How many members have a number, and are in the mean, in each place."""
        tables = self._recoveries(measure)
        return self._like((~np.isnan(self._stacked(tables))).sum(0), tables)

    def to_frame(self, measure: str = LOGIT_MSE.name) -> DataFrame:
        """Tidy: a row a setting and window (and place), with columns `mean, sd, min, max, n` of the recovery."""
        import pandas as pd

        tables = {
            "mean": self.recovery(measure),
            **{name: getattr(self, name)(measure) for name in ("sd", "min", "max", "n")},
        }
        rows = []
        for i, column in enumerate(self.plan.columns):
            place = {} if column.position is None else {"position": column.position}
            part = {} if self.plan.part_name is None else {self.plan.part_name: column.part}
            for j, window in enumerate(self.plan.windows):
                values = {name: table.iat[j, i] for name, table in tables.items()}
                layers = {"window": window.name, "first_layer": window.first, "last_layer": window.last}
                rows.append({"setting": column.setting, **part, **place, **layers, **values})
        return pd.DataFrame(rows)

    def plot(self, ax: Any = None, *, measure: str = LOGIT_MSE.name, setting: Named | None = None) -> Axes:
        """The mean with a band of one standard deviation and every member thin behind it; of axes, a map of the mean.

        Args:
            ax: matplotlib axes, or an empty figure; a new figure if not given.
            measure: whose recovery is drawn.
            setting: this one alone; all of them if not given.
        """
        table, title = self.recovery(measure), f"mean of {counted(len(self.members), 'result')}"
        value = pictures.value_label(self.direction, measure)
        if table.columns.nlevels > 1:
            return pictures.draw_maps(self.plan, table, value, title, ax, setting)
        chosen = chosen_columns(self.plan, setting)
        sd = self.sd(measure).fillna(0.0)
        return plot_lines(
            table.iloc[:, chosen],
            labels=[self.plan.settings[i].label for i in chosen],
            low=(table - sd).iloc[:, chosen],
            high=(table + sd).iloc[:, chosen],
            members=[t.iloc[:, chosen] for t in self._recoveries(measure)],
            x_label=pictures.x_label(self.plan),
            y_label=value,
            title=f"{title}; band: ± 1 SD between them",
            ax=ax,
        )

    def to_latex(
        self,
        measure: str = LOGIT_MSE.name,
        *,
        digits: int = 2,
        caption: str | None = None,
        label: str | None = None,
        setting: Named | None = None,
    ) -> str:
        """`recovery(measure)` with `sd(measure)` beside it, as `SweepResult.to_latex` writes it."""
        table, told = self.recovery(measure), pictures.caption(self.direction, measure, self.about)
        words = reading.captioned(told, caption)
        return reading.to_latex(self.plan, table, digits, words, label, self.sd(measure), setting=setting)

    @property
    def about(self) -> str:
        """What the windows are, and of which sweeps the numbers are."""
        of = f"mean of {counted(len(self.names), 'sweep')} with standard deviation: {', '.join(self.names)}"
        return f"{pictures.rows_of(self.plan)}; {of}"

    def to_xarray(self) -> Any:
        """The recovery of each member and measure as an `xarray.Dataset` (extra `krs[xarray]`), by member."""
        recoveries = {measure: self.stacked(measure) for measure in self.measures}
        return reading.mean_to_xarray(self.plan, recoveries, self.names, self.direction)

    def save(self, path: str | Path, overwrite: bool = False) -> Path:
        """Write every member to one file; `krs.load_result` reads it.

        Raises `KrsError` when the file exists and `overwrite` is false.
        """
        return storage.save_mean([vars(r) for r in self.members], self.names, Path(path), overwrite)

    def stacked(self, measure: str = LOGIT_MSE.name) -> np.ndarray:
        """`recovery(measure)` of every member, `[member, window, column]`, columns as in `recovery`."""
        return self._stacked(self._recoveries(measure))

    def _check(self, measure: str) -> None:
        if measure not in self.measures:
            raise KrsError(
                f"{measure!r} was not measured in every member, by the same function: "
                f"all have {', '.join(self.measures)}"
            )

    def _recoveries(self, measure: str) -> list[DataFrame]:
        """Of every member, all with the same columns: places that one does not have are NaN."""
        self._check(measure)
        return self._aligned([r.recovery(measure) for r in self.members])

    def _aligned(self, tables: list[DataFrame]) -> list[DataFrame]:
        from krs.restore.axes import column_index

        columns = column_index(self.plan.columns, self.plan.part_name)
        return (
            tables if all(t.columns.equals(columns) for t in tables) else [t.reindex(columns=columns) for t in tables]
        )

    def _stacked(self, tables: list[DataFrame]) -> np.ndarray:
        return np.array([t.to_numpy(dtype=float) for t in tables])

    def _mean(self, tables: list[DataFrame]) -> DataFrame:
        tables = self._aligned(tables)
        return self._like(mean_and_sd(self._stacked(tables))[0], tables)

    def _like(self, values: np.ndarray, tables: list[DataFrame]) -> DataFrame:
        return type(tables[0])(values, index=tables[0].index, columns=tables[0].columns)

    def __repr__(self) -> str:
        table = as_text(self.recovery(), 3, max_rows=40)
        return f"{self._headline()}\n{table}"

    def _headline(self) -> str:
        spread = np.nanmax(self.sd().to_numpy(), initial=0.0)
        return f"MeanResult of {', '.join(self.names)}; largest standard deviation {spread:.3f}"

    def _repr_html_(self) -> str:
        return as_html(self._headline(), self.recovery())


def mean(results: Iterable[SweepResult], names: Iterable[str] | None = None) -> MeanResult:
    """The mean over several results of one plan, each with the same weight, and its spread: the paper's Fig. 1.

    Models, prompts and numbers of prompts may differ: concepts, methods, seeds.

    Args:
        results: of `krs.sweep` or `krs.concat`.
        names: what each is called; their unlearned models' names if not given.

    Raises `KrsError` that names what differs unless plan, scoring and direction are the same.
    """
    found = several(results, "krs.mean", models=False)
    each = [_name(r, i) for i, r in enumerate(found)] if names is None else list(map(str, names))
    if len(each) != len(found):
        raise KrsError(f"names= has {counted(len(each), 'name')} for {counted(len(found), 'result')}: one for each")
    return MeanResult(found, tuple(each))


def _name(result: SweepResult, i: int) -> str:
    return Path(called(result.provenance.get("unlearned", {}))).name or f"result {i}"


def _measured(result: SweepResult) -> dict[str, str]:
    """What was measured, and what each measure was."""
    said = {which.partition(" (")[0]: which for which in result.provenance.get("measures", [])}
    return {name: said.get(name, name) for name in result.measures}
