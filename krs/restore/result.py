"""What a sweep found: tables, the best windows, the figure, and one file that holds it all."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from krs._typing import Axes, DataFrame
from krs.metrics.score import Score, krs_score
from krs.prompts import Ids, Scoring
from krs.restore import storage
from krs.restore.losses import Losses
from krs.restore.plan import Plan
from krs.wording import counted


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
        """The scores: a row for each window (its centre layer), a column for each setting."""
        import pandas as pd

        values = [score.value for score in self.scores]
        table = np.array(values).reshape(len(self.plan.settings), len(self.plan.windows)).T
        index = pd.Index([w.name for w in self.plan.windows], name="layer")
        return pd.DataFrame(table, index=index, columns=[s.name for s in self.plan.settings])

    @property
    def scores(self) -> list[Score]:
        """A score for each restoration, in the plan's order, each with the reason if it is NaN."""
        return [self._score(r, slice(None)) for r in range(len(self.plan))]

    @property
    def notes(self) -> list[str]:
        """Why scores are NaN, if some are, and why it was not the fastest engine, if it was not."""
        slow = self.provenance.get("engine_note")
        return sorted({score.reason for score in self.scores if score.reason}) + ([slow] if slow else [])

    @property
    def complete(self) -> bool:
        """Whether every restoration was computed (not so for one that was interrupted)."""
        return self.losses.complete

    def to_frame(self, per_prompt: bool = False) -> DataFrame:
        """Tidy: `setting, window, first_layer, last_layer, loss, baseline, krs`, a row a restoration.

        `loss` and `baseline` are mean logit MSEs. With `per_prompt=True` there is a row for each prompt of each
        restoration, a column `prompt` with its number, and each prompt's own score.
        """
        import pandas as pd

        rows = []
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
                        "krs": self._score(r, part).value,
                    }
                )
        return pd.DataFrame(rows)

    def best(self) -> DataFrame:
        """The window that recovers most, for each setting: one row a setting, in the sweep's order."""
        frame = self.to_frame()
        order = [s.name for s in self.plan.settings]
        top = frame.sort_values("krs", ascending=False, na_position="last").drop_duplicates("setting")
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
        base = self.losses.baseline[self.losses.mask].mean()
        state = "" if self.complete else " (interrupted: not all restorations are there)"
        size = f"{counted(len(self.plan.settings), 'setting')} x {counted(len(self.plan.windows), 'window')}"
        return (
            f"SweepResult: {size}, "
            f"{counted(len(self.losses.mask), 'prompt')}, {counted(int(self.losses.mask.sum()), 'scored token')}, "
            f"scoring {self.scoring}, engine {made.get('engine', '?')}, baseline MSE {base:.4g}{state}"
        )

    def __repr__(self) -> str:
        table = self.krs.to_string(float_format=lambda x: f"{x:.3f}", max_rows=40)
        return "\n".join([self._headline(), table, *(f"note: {n}" for n in self.notes)])

    def _repr_html_(self) -> str:
        from html import escape

        table = self.krs.to_html(float_format=lambda x: f"{x:.3f}", max_rows=None, border=0)
        notes = "".join(f"<p><em>note: {escape(n)}</em></p>" for n in self.notes)
        return f"<p><b>{escape(self._headline())}</b></p>{table}{notes}"
