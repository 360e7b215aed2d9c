"""What a sweep found: tables, the best windows, the figure, and one file that holds it all."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from krs._typing import Axes, DataFrame, Dataset
from krs.errors import KrsError
from krs.metrics.measures import LOGIT_MSE
from krs.metrics.score import Score
from krs.notebook import as_html
from krs.prompts import Ids, Scoring
from krs.restore import pictures, reading, storage
from krs.restore.losses import Losses
from krs.restore.plan import Named, Plan, chosen_columns
from krs.restore.scores import Scores
from krs.restore.tables import by_window, in_order, selected, tidy
from krs.wording import as_text, counted

_ESTIMATED = "these numbers are estimates, not computed: run the restorations that matter with engine='auto'"
_DID = {
    "transplant": "transplanted, it restored nothing",
    "patch": "has a third model as its reference, or other prompts for its donor",
}
_HEAD = {"transplant": "transplanted, ", "patch": "patched, "}


@dataclass(frozen=True, repr=False, eq=False)
class SweepResult:
    """The result of `krs.sweep`.

    Attributes:
        plan: what was restored.
        losses: the logit MSEs `[restoration, prompt, token]` that every score is made of.
        scoring: `"next-token"` (Eq. 3) or `"paper-code"`.
        prompts: the prompts as text, or as token ids where there was no tokenizer.
        answers: the vanilla model's greedy answers, in the same form.
        provenance: versions, models, dtype, hash of the token ids, windows, settings, engine, time; in `parts`, for
            each run that computed some of it, which engine with which versions, when, and how much.
        part: int16 `[restoration, prompt]`: which of `provenance["parts"]` computed it, -1 for none yet; `None` in
            results of earlier versions.
        token_ids: for each prompt its ids and those of its answer.
        pieces: the same as text, a string a token; empty without a tokenizer.
        reach: int64 `[prompt, 2]`: how many positions each prompt has before the answer's first token, and from there
            on. A prompt that does not have a position of an axis is left out there: its numbers in `losses`, with
            nothing restored, are in no table.
    """

    plan: Plan
    losses: Losses
    scoring: Scoring
    prompts: tuple[Any, ...] = ()
    answers: tuple[Any, ...] = ()
    provenance: dict[str, Any] = field(default_factory=dict)
    part: np.ndarray | None = None
    token_ids: tuple[tuple[Ids, Ids], ...] = ()
    pieces: tuple[tuple[str, ...], ...] = ()
    reach: np.ndarray | None = None

    @property
    def krs(self) -> DataFrame:
        """The scores: a row for each window (its centre layer), a column for each setting.

        With axes the columns have levels: setting, head or unit, position. `result.krs["resid"]` is a layer x position
        map then.

        Raises `KrsError` for a transplant, which recovers no knowledge: `recovery()` has its numbers.
        """
        if self.direction != "restore":
            raise KrsError(
                f"this sweep {_DID[self.direction]}, so there is no Knowledge Recovery Score: result.recovery() says "
                "how far the recipient has come to the donor"
            )
        return by_window(self.plan, [score.value for score in self.scores])

    @property
    def direction(self) -> str:
        """`"restore"`: pieces of the vanilla model into the unlearned one; `"transplant"`: the other way round.

        `"patch"`: the reference is a third model, or the donor read other prompts.
        """
        return str(self.provenance.get("direction", "restore"))

    @property
    def estimated(self) -> bool:
        """Whether the numbers are estimates (`engine="estimate"`, or another engine that is not exact)."""
        return not self.provenance.get("exact", True)

    @property
    def measures(self) -> tuple[str, ...]:
        """What was measured; the logit MSE is the first."""
        return self._numbers.measures

    def table(self, measure: str = LOGIT_MSE.name) -> DataFrame:
        """The mean of a measure over scored tokens, laid out as `krs`."""
        return by_window(self.plan, self._numbers.means(measure))

    def recovery(self, measure: str = LOGIT_MSE.name) -> DataFrame:
        """How far a measure has come from the recipient as it is (0) to the donor as it is (1), laid out as `krs`.

        `recovery("logit_mse")` of a restoring sweep is `krs`. NaN where recipient and donor do not differ.
        """
        return by_window(self.plan, [score.value for score in self._numbers.recoveries(measure)])

    def interval(self, level: float = 0.95, measure: str = LOGIT_MSE.name) -> tuple[DataFrame, DataFrame]:
        """Where `recovery(measure)` would lie for other prompts of this kind: low and high, each laid out as `krs`.

        The percentiles of 2,000 bootstrap samples of the prompts; NaN where the recovery is. Raises `KrsError` for
        fewer than two prompts.
        """
        if not 0 < level < 1:
            raise KrsError(f"level={level!r}: give a number between 0 and 1, such as 0.95")
        if len(self.losses.mask) < 2:
            raise KrsError("an interval over prompts needs at least two of them")
        low, high = self._numbers.interval(level, measure)
        return by_window(self.plan, low), by_window(self.plan, high)

    def sel(
        self,
        setting: Named,
        window: int | str | None = None,
        *,
        position: int | None = None,
        head: int | None = None,
        unit: int | None = None,
    ) -> DataFrame:
        """The rows of `to_frame()` for a setting or an axis of settings, and for one window, position, head or unit.

        Raises `KrsError` for what was not swept.
        """
        asked = {"window": window, "position": position, "head": head, "unit": unit}
        return selected(self._numbers, setting, asked)

    @property
    def scores(self) -> list[Score]:
        """A score for each restoration, in the plan's order, each with the reason if it is NaN.

        Of a transplant, the recovery of the logit MSE.
        """
        return self._numbers.recoveries()

    @property
    def _numbers(self) -> Scores:
        dtype = self.provenance.get("vanilla", {}).get("dtype", "float32")
        return Scores(self.plan, self.losses, self.scoring, self.direction, dtype, self.reach)

    @property
    def notes(self) -> list[str]:
        """Why scores are NaN, if some are, why it was not the fastest engine, if it was not, and what about the input
        is most likely not meant."""
        slow = self.provenance.get("engine_note")
        done = [bool(row.all()) for row in self.losses.computed]
        there, asked = self._progress
        rest = f"{asked - there:,} of {counted(asked, 'restoration')} are not computed: the same call goes on with them"
        return (
            ([] if self.complete else [rest])
            + sorted({score.reason for score, known in zip(self.scores, done, strict=True) if score.reason and known})
            + ([_ESTIMATED] if self.estimated else [])
            + ([slow] if slow else [])
            + self.provenance.get("notes", [])
        )

    @property
    def complete(self) -> bool:
        """Whether every restoration was computed (not so for one that was interrupted)."""
        return self.losses.complete and "waiting" not in self.provenance

    @property
    def interrupted(self) -> str:
        """How far a sweep came that was interrupted, as figures and tables say it; empty for one that is complete.

        A restoration counts for each prompt: `"interrupted: 188 of 240 restorations"` are those of 2 prompts and 120
        restorations.
        """
        there, asked = self._progress
        return "" if self.complete else f"interrupted: {there:,} of {counted(asked, 'restoration')}"

    @property
    def _progress(self) -> tuple[int, int]:
        """Restorations, of each prompt, that are there, and that were asked for."""
        waiting = len(self.provenance.get("waiting", {}).get("token_ids", ()))
        return int(self.losses.computed.sum()), len(self.plan) * (len(self.losses.mask) + waiting)

    def to_frame(self, per_prompt: bool = False) -> DataFrame:
        """Tidy: `setting, window, first_layer, last_layer, loss, baseline, krs`, a row a restoration.

        Of a transplant, the last column is `recovery`. The ends of the model have no layers: `<NA>`.

        `loss` and `baseline` are mean logit MSEs. With `per_prompt=True` there is a row for each prompt of each
        restoration, a column `prompt` with its number, and each prompt's own score.
        """
        return tidy(self._numbers, per_prompt)

    def in_order(self, table: DataFrame) -> np.ndarray:
        """The numbers of a table such as `krs` in the order of `to_frame()`'s rows."""
        return in_order(self.plan, table)

    def best(self) -> DataFrame:
        """The window that recovers most, for each setting: one row a setting, in the sweep's order."""
        frame = self.to_frame()
        order = [s.name for s in self.plan.settings]
        top = frame.sort_values(frame.columns[-1], ascending=False, na_position="last").drop_duplicates("setting")
        return top.set_index("setting").loc[order]

    def plot(
        self,
        ax: Any = None,
        *,
        measure: str = LOGIT_MSE.name,
        level: float | None = 0.95,
        setting: Named | None = None,
    ) -> Axes:
        """The picture that fits the axes: Fig. 1 of the paper, or a heat map of layers x positions, heads or units.

        Args:
            ax: matplotlib axes, or an empty figure; a new figure if not given.
            measure: whose recovery is drawn.
            level: of the bands around curves, `interval(level)`; none for `None`, or for a single prompt.
            setting: this one alone, or this axis; all of them if not given, a map each.

        Returns the axes; of several maps the first, whose `figure` has all of them. `krs.plots.save_figure(result,
        path)` writes SVG and PDF whose text is text.
        """
        table, value = self.recovery(measure), pictures.value_label(self.direction, measure)
        pictures.check_drawable({"the result": table.iloc[:, chosen_columns(self.plan, setting)]})
        size = f"{'estimated; ' if self.estimated else ''}{pictures.size_of(self.losses.mask)}"
        title = "\n".join(line for line in (self._pair, size, self.interrupted) if line)
        if table.columns.nlevels > 1:
            ticks = pictures.ticks_of(self.plan, self.token_ids, self.pieces)
            return pictures.draw_maps(self.plan, table, value, title, ax, setting, ticks)
        band = (level, *self.interval(level, measure)) if level is not None and len(self.losses.mask) > 1 else None
        return pictures.draw_curves(self.plan, table, value, title, ax, setting, band)

    @property
    def about(self) -> str:
        """Both models, what the windows are, of how many prompts the numbers are, and whether some are missing."""
        how = ["estimated"] if self.estimated else []
        told = [self._pair, *how, pictures.rows_of(self.plan), pictures.size_of(self.losses.mask), self.interrupted]
        return "; ".join(part for part in told if part)

    @property
    def _pair(self) -> str:
        return pictures.pair_of(self.provenance, self.direction)

    def tokens(
        self,
        prompt: int = 0,
        setting: Named | None = None,
        measure: str = LOGIT_MSE.name,
        *,
        recovery: bool = False,
        position: int | None = None,
    ) -> DataFrame:
        """Which words come back where: a row for each scored token of one prompt, a column for each window.

        Args:
            prompt: its number.
            setting: which setting; may be left out where there is one.
            measure: of it each token's own number; with `recovery` how far that has come from the recipient's (0) to
                the donor's (1), NaN where these are the same.
            recovery: see `measure`.
            position: which, where positions are an axis.

        Rows are named by the token's number and its text (its id without a tokenizer).
        """
        asked = (prompt, setting, measure, recovery, position)
        return reading.tokens(self._numbers, self.token_ids, self.pieces, *asked)

    def to_latex(
        self,
        measure: str = LOGIT_MSE.name,
        *,
        digits: int = 2,
        caption: str | None = None,
        label: str | None = None,
        setting: Named | None = None,
    ) -> str:
        """`recovery(measure)` as a LaTeX table (package booktabs), windows by settings.

        Args:
            measure: whose recovery.
            digits: behind the point.
            caption: LaTeX; one that names measure, models and windows if not given. `""` writes a tabular alone.
            label: of the table, for `\\ref`.
            setting: this one alone, or this axis; all of them if not given.
        """
        table, told = self.recovery(measure), pictures.caption(self.direction, measure, self.about)
        return reading.to_latex(self.plan, table, digits, reading.captioned(told, caption), label, setting=setting)

    def to_xarray(self) -> Dataset:
        """Every number as an `xarray.Dataset` (extra `krs[xarray]`): setting x window (x position) x prompt x token.

        A variable each measure, of the recipient and the donor as they are `…_recipient` and `…_donor`. NaN where a
        prompt has no such token, or no such position.
        """
        return reading.to_xarray(self._numbers, self.provenance)

    def save(self, path: str | Path, overwrite: bool = False) -> Path:
        """Write everything to one file (safetensors, no pickle); `krs.load_result` reads it.

        Raises `KrsError` when the file exists and `overwrite` is false.
        """
        return storage.save(vars(self), Path(path), overwrite)

    def _headline(self) -> str:
        made = self.provenance
        base = (self.losses.donor if self.direction == "transplant" else self.losses.baseline)[self.losses.mask].mean()
        state = f" ({self.interrupted})" if self.interrupted else ""
        size = f"{counted(len(self.plan.settings), 'setting')} x {counted(len(self.plan.windows), 'window')}"
        kind = ("ESTIMATED, " if self.estimated else "") + _HEAD.get(self.direction, "")
        return (
            f"SweepResult: {kind}{size}, "
            f"{counted(len(self.losses.mask), 'prompt')}, {counted(int(self.losses.mask.sum()), 'scored token')}, "
            f"scoring {self.scoring}, engine {made.get('engine', '?')}, baseline MSE {base:.4g}{state}"
        )

    def __repr__(self) -> str:
        table = as_text(self.recovery(), 3, max_rows=40)
        return "\n".join([self._headline(), table, *(f"note: {n}" for n in self.notes)])

    def _repr_html_(self) -> str:
        return as_html(self._headline(), self.recovery(), (f"note: {n}" for n in self.notes))
