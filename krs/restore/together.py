"""Results that add up: `concat` over prompts, `mean` over results."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from krs._typing import Axes, DataFrame
from krs.errors import KrsError
from krs.metrics.measures import LOGIT_MSE
from krs.models.identity import differing
from krs.models.provenance import now
from krs.names import called
from krs.notebook import as_html
from krs.plots import mean_and_sd, plot_lines
from krs.restore import pictures, reading, storage
from krs.restore.losses import Losses, Measured
from krs.restore.plan import Named, Plan, chosen_columns
from krs.restore.result import SweepResult
from krs.wording import as_text, counted


def concat(results: Iterable[SweepResult]) -> SweepResult:
    """One result over the prompts of several, such as those of several concepts, as if they had been one sweep.

    >>> import krs
    >>> vanilla, _ = krs.load("smollm2")
    >>> unlearned, _ = krs.load("smollm2")
    >>> _ = unlearned.model.layers[29].mlp.up_proj.weight.data.mul_(1.5)
    >>> ask = {"settings": "resid", "windows": krs.windows.of([[29]]), "n_tokens": 2, "progress": False}
    >>> parts = [krs.sweep(vanilla, unlearned, [prompt], **ask) for prompt in ("Hogwarts is a", "The sun is")]
    >>> len(krs.concat(parts).prompts)
    2

    Every number is taken as it is; means, recoveries and intervals are over all scored tokens of all prompts, so that
    a result with more of them weighs more. `krs.mean` weighs results alike.

    Raises `KrsError` that names what differs unless plan, scoring, measures, direction and both models are the same.
    """
    found = _several(results, "krs.concat")
    for i, other in enumerate(found[1:], 1):
        if reasons := list(_differing(found[0], other, models=True)):
            raise KrsError(f"krs.concat: results 0 and {i} are of different sweeps: {'; '.join(reasons)}")
    plan = _joint_plan(found)
    made: dict[str, Any] = found[0].provenance | {"made_by": "krs.concat", "time": now()}
    parts, numbers = _parts(found, plan)
    made["parts"] = parts
    made["notes"] = list(dict.fromkeys(n for r in found for n in r.provenance.get("notes", [])))
    for what in ("donor_prompts", "subjects"):
        if all(r.provenance.get(what) is not None for r in found):
            made[what] = [one for r in found for one in r.provenance[what]]
    made["engine"] = " and ".join(dict.fromkeys(str(r.provenance.get("engine", "?")) for r in found))
    made["seconds"] = round(sum(r.provenance.get("seconds", 0.0) for r in found), 1)
    digests = [r.provenance.get("tokens_sha256") for r in found]
    made["tokens_sha256"] = hashlib.sha256(json.dumps(digests).encode()).hexdigest()
    made["of"] = [
        {"time": r.provenance.get("time"), "prompts": len(r.losses.mask), "tokens_sha256": digest}
        for r, digest in zip(found, digests, strict=True)
    ]
    return SweepResult(
        plan,
        _joint_losses(found, plan),
        found[0].scoring,
        _joined(r.prompts for r in found),
        _joined(r.answers for r in found),
        made,
        numbers,
        _joined(r.token_ids for r in found),
        _joined(r.pieces for r in found),
        np.concatenate([r.reach for r in found]) if all(r.reach is not None for r in found) else None,
    )


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
        return _joint_plan(self.members)

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
    found = _several(results, "krs.mean")
    for i, other in enumerate(found[1:], 1):
        if reasons := list(_differing(found[0], other, models=False)):
            raise KrsError(f"krs.mean: results 0 and {i} are of different sweeps: {'; '.join(reasons)}")
    called = [_name(r, i) for i, r in enumerate(found)] if names is None else list(map(str, names))
    if len(called) != len(found):
        raise KrsError(f"names= has {counted(len(called), 'name')} for {counted(len(found), 'result')}: one for each")
    return MeanResult(found, tuple(called))


def rows(result: SweepResult | MeanResult, setting: Named | None, measure: str = LOGIT_MSE.name) -> DataFrame:
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


def _name(result: SweepResult, i: int) -> str:
    return Path(called(result.provenance.get("unlearned", {}))).name or f"result {i}"


def _several(results: Iterable[Any], what: str) -> tuple[SweepResult, ...]:
    if isinstance(results, SweepResult | MeanResult):
        raise KrsError(f"{what} takes a list of results: {what}([first, second])")
    found = tuple(results)
    if not found:
        raise KrsError(f"{what} got no results: give at least one")
    for i, result in enumerate(found):
        if not isinstance(result, SweepResult):
            raise KrsError(f"{what}: item {i} is a {type(result).__name__}, no result of krs.sweep: pass its members")
        if not result.complete:
            raise KrsError(f"{what}: result {i} is of an interrupted sweep: finish it first (checkpoint=)")
    return found


def _differing(a: SweepResult, b: SweepResult, models: bool) -> Iterator[str]:
    """In what two sweeps differ, other than in their prompts."""
    names = ("settings", "windows", "n_layers", "axes")
    pairs: dict[str, tuple[Any, Any]] = {n: (getattr(a.plan, n), getattr(b.plan, n)) for n in names}
    pairs["positions"] = (_positions(a), _positions(b))
    pairs |= {"scoring": (a.scoring, b.scoring), "direction": (a.direction, b.direction)}
    pairs["whether they are estimates"] = (a.estimated, b.estimated)
    ours, theirs = (r.provenance for r in (a, b))
    for what in ("reference", "donor_prompts"):
        pairs[f"whether there is a {what}"] = tuple(made.get(what) is not None for made in (ours, theirs))  # type: ignore[assignment]
    if models:
        pairs["where a family keeps its modules"] = (ours.get("layouts"), theirs.get("layouts"))
        pairs["measures"] = (ours.get("measures", list(a.measures)), theirs.get("measures", list(b.measures)))
        pairs["krs's way to its numbers"] = (ours.get("numbers"), theirs.get("numbers"))
    for what, (here, there) in pairs.items():
        if here != there:
            yield f"{what} ({here!r}, {there!r})" if len(f"{here!r}{there!r}") < 80 else what
    third = ("reference",) if "reference" in ours and "reference" in theirs else ()
    for side in ("vanilla", "unlearned", *third) if models else ():
        here, there = (r.provenance.get(side, {}).get("identity") for r in (a, b))
        if here is None or there is None:
            yield f"the {side} model (one result does not say which it was)"
        elif parts := differing(here, there):
            yield f"the {side} model ({', '.join(parts)})"


def _measured(result: SweepResult) -> dict[str, str]:
    """What was measured, and what each measure was."""
    said = {which.partition(" (")[0]: which for which in result.provenance.get("measures", [])}
    return {name: said.get(name, name) for name in result.measures}


def _positions(result: SweepResult) -> Any:
    """Indices for each prompt belong to the prompts, so that they may differ."""
    positions = result.plan.positions
    apart = isinstance(positions, tuple) and isinstance(positions[0], tuple)
    return result.provenance.get("positions", "indices for each prompt") if apart else positions


def _joint_plan(found: Sequence[SweepResult]) -> Plan:
    plan = found[0].plan
    if plan.places:
        return plan.at_places(sorted({p for r in found for p in r.plan.places}))
    if isinstance(plan.positions, tuple) and isinstance(plan.positions[0], tuple):
        rows: Any = [row for r in found for row in r.plan.positions]  # type: ignore[union-attr]
        return replace(plan, positions=tuple(rows))
    return plan


def _joint_losses(found: Sequence[SweepResult], plan: Plan) -> Losses:
    width = max(r.losses.mask.shape[1] for r in found)

    def wide(values: np.ndarray, fill: Any) -> np.ndarray:
        missing = [(0, 0)] * (values.ndim - 1) + [(0, width - values.shape[-1])]
        return np.pad(values, missing, constant_values=fill)

    def joined(measure: str) -> Measured:
        restored = np.concatenate([wide(_at_places(r, measure, plan), np.nan) for r in found], axis=1)
        sides = [
            np.concatenate([wide(getattr(r.losses.of(measure), side), np.nan) for r in found])
            for side in ("recipient", "donor")
        ]
        return Measured(restored, *sides)

    first = joined(LOGIT_MSE.name)
    power = np.concatenate([wide(r.losses.power, np.nan) for r in found])
    mask = np.concatenate([wide(r.losses.mask, False) for r in found])
    more = {name: joined(name) for name in found[0].losses.measured}
    return Losses(first.restored, first.recipient, power, mask, first.donor, more)


def _at_places(result: SweepResult, measure: str, plan: Plan) -> np.ndarray:
    """Numbers at every place of the joint plan; where none of the prompts has one, as with nothing restored."""
    kept, places = result.losses.of(measure), result.plan.places
    if places == plan.places:
        return kept.restored
    per_window = kept.restored.reshape(-1, len(places), *result.losses.mask.shape)
    found = np.broadcast_to(kept.recipient, (len(per_window), len(plan.places), *kept.recipient.shape)).copy()
    found[:, [plan.places.index(p) for p in places]] = per_window
    return found.reshape(-1, *kept.recipient.shape)


def _parts(found: Sequence[SweepResult], plan: Plan) -> tuple[list[Any], np.ndarray | None]:
    """Which run computed what, in the numbers of all parts together."""
    if any(r.part is None for r in found):
        return [], None
    parts: list[Any] = []
    numbers = []
    for r in found:
        assert r.part is not None
        own = np.where(r.part < 0, -1, r.part + len(parts)).astype(np.int16)
        if r.plan.places != plan.places:
            where = [plan.places.index(p) for p in r.plan.places]
            wider = np.full((len(own) // len(where), len(plan.places), own.shape[1]), own.max(initial=-1), np.int16)
            wider[:, where] = own.reshape(len(wider), len(where), -1)
            own = wider.reshape(len(plan), -1)
        numbers.append(own)
        parts += r.provenance.get("parts", [])
    return parts, np.concatenate(numbers, axis=1)


def _joined(rows: Iterable[tuple[Any, ...]]) -> tuple[Any, ...]:
    """What all results say of their prompts; nothing where one of them says nothing."""
    listed = list(rows)
    return tuple(x for row in listed for x in row) if all(listed) else ()
