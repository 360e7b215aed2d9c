"""What a sweep found: tables, the best windows, the figure, and one file that holds it all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from krs._typing import Axes, DataFrame
from krs.errors import KrsError
from krs.hooks.points import Point, Setting
from krs.hooks.registry import setting as as_setting
from krs.metrics.measures import LOGIT_MSE
from krs.metrics.recovery import recovery, resampled
from krs.metrics.score import Score, krs_score
from krs.prompts import Ids, Scoring
from krs.restore import storage
from krs.restore.losses import Losses, Measured
from krs.restore.plan import Plan
from krs.wording import counted

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
    """

    plan: Plan
    losses: Losses
    scoring: Scoring
    prompts: tuple[Any, ...] = ()
    answers: tuple[Any, ...] = ()
    provenance: dict[str, Any] = field(default_factory=dict)
    part: np.ndarray | None = None
    token_ids: tuple[tuple[Ids, Ids], ...] = ()

    @property
    def krs(self) -> DataFrame:
        """The scores: a row for each window (its centre layer), a column for each setting.

        Raises `KrsError` for a transplant, which recovers no knowledge: `recovery()` has its numbers.
        """
        if self.direction != "restore":
            raise KrsError(
                f"this sweep {_DID[self.direction]}, so there is no Knowledge Recovery Score: result.recovery() says "
                "how far the recipient has come to the donor"
            )
        return self._table([score.value for score in self.scores])

    @property
    def direction(self) -> str:
        """`"restore"`: pieces of the vanilla model into the unlearned one; `"transplant"`: the other way round.

        `"patch"`: the reference is a third model, or the donor read other prompts.
        """
        return str(self.provenance.get("direction", "restore"))

    @property
    def measures(self) -> tuple[str, ...]:
        """What was measured; the logit MSE is the first."""
        return (LOGIT_MSE.name, *self.losses.measured)

    def table(self, measure: str = LOGIT_MSE.name) -> DataFrame:
        """The mean of a measure over scored tokens, laid out as `krs`."""
        kept, mask = self._measured(measure), self.losses.mask
        return self._table([values[mask].mean() for values in kept.restored])

    def recovery(self, measure: str = LOGIT_MSE.name) -> DataFrame:
        """How far a measure has come from the recipient as it is (0) to the donor as it is (1), laid out as `krs`.

        `recovery("logit_mse")` of a restoring sweep is `krs`. NaN where recipient and donor do not differ.
        """
        return self._table([score.value for score in self._recoveries(measure)])

    def interval(self, level: float = 0.95, measure: str = LOGIT_MSE.name) -> tuple[DataFrame, DataFrame]:
        """Where `recovery(measure)` would lie for other prompts of this kind: low and high, each laid out as `krs`.

        The percentiles of 2,000 bootstrap samples of the prompts. Raises `KrsError` for fewer than two prompts.
        """
        if not 0 < level < 1:
            raise KrsError(f"level={level!r}: give a number between 0 and 1, such as 0.95")
        if len(self.losses.mask) < 2:
            raise KrsError("an interval over prompts needs at least two of them")
        kept = self._measured(measure)
        by_prompt = self.scoring == "paper-code" and measure == LOGIT_MSE.name
        samples = resampled(kept.restored, kept.recipient, kept.donor, self.losses.mask, per_prompt=by_prompt)
        low, high = np.nanquantile(samples, [(1 - level) / 2, (1 + level) / 2], axis=0)
        return self._table(low), self._table(high)

    def sel(self, setting: str | Point | Setting, window: int | str | None = None) -> DataFrame:
        """The rows of `to_frame()` for a setting, and for one window of it by its name.

        Raises `KrsError` for a setting or window that was not swept.
        """
        name = as_setting(setting).name
        if name not in [s.name for s in self.plan.settings]:
            raise KrsError(f"{name!r} was not swept: this result has {', '.join(s.name for s in self.plan.settings)}")
        frame = self.to_frame()
        frame = frame[frame.setting == name]
        if window is None:
            return frame
        if window not in [w.name for w in self.plan.windows]:
            raise KrsError(
                f"there is no window {window!r}: there are {', '.join(str(w.name) for w in self.plan.windows)}"
            )
        return frame[frame.window == window]

    def _measured(self, measure: str) -> Measured:
        if measure not in self.measures:
            raise KrsError(
                f"{measure!r} was not measured: this result has {', '.join(self.measures)}; ask for more with "
                "krs.sweep(…, measures=[…])"
            )
        return self.losses.of(measure)

    def _recoveries(self, measure: str) -> list[Score]:
        if measure == LOGIT_MSE.name and self.direction == "restore":
            return self.scores
        kept = self._measured(measure)
        return [recovery(v, kept.recipient, kept.donor, self.losses.mask, measure) for v in kept.restored]

    def _table(self, values: Sequence[float] | np.ndarray) -> DataFrame:
        """A number a restoration as a table, windows by settings; NaN where a setting cannot be restored."""
        import pandas as pd

        table = np.full((len(self.plan.windows), len(self.plan.settings)), np.nan)
        for value, (setting, window) in zip(values, self.plan.cells, strict=True):
            table[window, setting] = value
        index = pd.Index([w.name for w in self.plan.windows], name="layer")
        return pd.DataFrame(table, index=index, columns=[s.name for s in self.plan.settings])

    @property
    def scores(self) -> list[Score]:
        """A score for each restoration, in the plan's order, each with the reason if it is NaN.

        Of a transplant, the recovery of the logit MSE.
        """
        if self.direction != "restore":
            return self._recoveries(LOGIT_MSE.name)
        return [self._score(r, slice(None)) for r in range(len(self.plan))]

    @property
    def notes(self) -> list[str]:
        """Why scores are NaN, if some are, why it was not the fastest engine, if it was not, and what about the input
        is most likely not meant."""
        slow = self.provenance.get("engine_note")
        return (
            sorted({score.reason for score in self.scores if score.reason})
            + ([slow] if slow else [])
            + self.provenance.get("notes", [])
        )

    @property
    def complete(self) -> bool:
        """Whether every restoration was computed (not so for one that was interrupted)."""
        return self.losses.complete

    def to_frame(self, per_prompt: bool = False) -> DataFrame:
        """Tidy: `setting, window, first_layer, last_layer, loss, baseline, krs`, a row a restoration.

        Of a transplant, the last column is `recovery`. The ends of the model have no layers: `<NA>`.

        `loss` and `baseline` are mean logit MSEs. With `per_prompt=True` there is a row for each prompt of each
        restoration, a column `prompt` with its number, and each prompt's own score.
        """
        import pandas as pd

        rows, score = [], "krs" if self.direction == "restore" else "recovery"
        for r, restoration in enumerate(self.plan):
            window = restoration.window
            for n in range(len(self.losses.mask)) if per_prompt else [None]:
                part = slice(None) if n is None else slice(n, n + 1)
                mask = self.losses.mask[part]
                rows.append(
                    {
                        "setting": restoration.setting.name,
                        "window": window.name,
                        "first_layer": window.first,
                        "last_layer": window.last,
                        **({} if n is None else {"prompt": n}),
                        "loss": self.losses.restored[r, part][mask].mean(),
                        "baseline": self.losses.baseline[part][mask].mean(),
                        score: self._score(r, part).value,
                    }
                )
        frame = pd.DataFrame(rows)
        if not all(w.layers for w in self.plan.windows):
            frame = frame.astype({"first_layer": "Int64", "last_layer": "Int64"})
        return frame

    def best(self) -> DataFrame:
        """The window that recovers most, for each setting: one row a setting, in the sweep's order."""
        frame = self.to_frame()
        order = [s.name for s in self.plan.settings]
        top = frame.sort_values(frame.columns[-1], ascending=False, na_position="last").drop_duplicates("setting")
        return top.set_index("setting").loc[order]

    def plot(self, ax: Axes | None = None) -> Axes:
        """Fig. 1 of the paper on matplotlib axes (new ones if none are given); returns the axes."""
        from krs.plots import plot_sweep

        return plot_sweep(self, ax)

    def save(self, path: str | Path, overwrite: bool = False) -> Path:
        """Write everything to one file (safetensors, no pickle); `krs.load_result` reads it.

        Raises `KrsError` when the file exists and `overwrite` is false.
        """
        return storage.save(self, Path(path), overwrite)

    def _score(self, restoration: int, rows: slice) -> Score:
        kept = self.losses
        if self.direction != "restore":
            return recovery(
                kept.restored[restoration, rows],
                kept.baseline[rows],
                kept.donor[rows],
                kept.mask[rows],
                "the logit MSE",
            )
        return krs_score(
            kept.restored[restoration, rows],
            kept.baseline[rows],
            kept.mask[rows],
            scoring=self.scoring,
            power=kept.power[rows],
            dtype=self.provenance.get("vanilla", {}).get("dtype", "float32"),
        )

    def _headline(self) -> str:
        made = self.provenance
        base = (self.losses.donor if self.direction == "transplant" else self.losses.baseline)[self.losses.mask].mean()
        state = "" if self.complete else " (interrupted: not all restorations are there)"
        size = f"{counted(len(self.plan.settings), 'setting')} x {counted(len(self.plan.windows), 'window')}"
        return (
            f"SweepResult: {_HEAD.get(self.direction, '')}{size}, "
            f"{counted(len(self.losses.mask), 'prompt')}, {counted(int(self.losses.mask.sum()), 'scored token')}, "
            f"scoring {self.scoring}, engine {made.get('engine', '?')}, baseline MSE {base:.4g}{state}"
        )

    def __repr__(self) -> str:
        table = self.recovery().to_string(float_format=lambda x: f"{x:.3f}", max_rows=40)
        return "\n".join([self._headline(), table, *(f"note: {n}" for n in self.notes)])

    def _repr_html_(self) -> str:
        from html import escape

        table = self.recovery().to_html(float_format=lambda x: f"{x:.3f}", max_rows=None, border=0)
        notes = "".join(f"<p><em>note: {escape(n)}</em></p>" for n in self.notes)
        return f"<p><b>{escape(self._headline())}</b></p>{table}{notes}"
