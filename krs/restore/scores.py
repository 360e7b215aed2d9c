"""A sweep's scores: a number a restoration, made of what was measured at each token of each prompt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from krs.errors import KrsError
from krs.metrics.measures import LOGIT_MSE
from krs.metrics.recovery import recovery, resampled
from krs.metrics.score import Score, krs_score, noise, nothing_unlearned
from krs.prompts import Scoring
from krs.restore.losses import Losses, Measured
from krs.restore.plan import Plan


@dataclass(frozen=True, repr=False, eq=False)
class Scores:
    """What a sweep measured, taken together over tokens and prompts, in the plan's order.

    Attributes:
        plan: what was restored.
        losses: what was measured.
        scoring: how logit MSEs become a score.
        direction: `"restore"`, `"transplant"` or `"patch"`; only the first has Knowledge Recovery Scores.
        dtype: the vanilla model's, which says what is rounding noise.
        reach: int64 `[prompt, 2]`: how many positions each prompt has before the answer's first token, and from there
            on.
    """

    plan: Plan
    losses: Losses
    scoring: Scoring
    direction: str
    dtype: str
    reach: np.ndarray | None

    @property
    def measures(self) -> tuple[str, ...]:
        """What was measured; the logit MSE is the first."""
        return (LOGIT_MSE.name, *self.losses.measured)

    def measured(self, measure: str) -> Measured:
        """The numbers of one measure; raises `KrsError` for one that was not asked for."""
        if measure not in self.measures:
            raise KrsError(
                f"{measure!r} was not measured: this result has {', '.join(self.measures)}; ask for more with "
                "krs.sweep(…, measures=[…])"
            )
        return self.losses.of(measure)

    def prompts(self, restoration: int) -> np.ndarray:
        """The prompts that have the position of a restoration; all of them where positions are no axis."""
        return self.having(self.plan.places[restoration % len(self.plan.places)] if self.plan.places else None)

    def having(self, place: int | None) -> np.ndarray:
        """The prompts that have a position, counted from the answer's first token; all of them for `None`."""
        if place is None or self.reach is None:
            return np.arange(len(self.losses.mask))
        return np.flatnonzero((-self.reach[:, 0] <= place) & (place < self.reach[:, 1]))

    def means(self, measure: str) -> list[float]:
        """The mean of a measure over scored tokens."""
        kept, mask = self.measured(measure), self.losses.mask
        parts = map(self.prompts, range(len(self.plan)))
        return [v[rows][mask[rows]].mean() for v, rows in zip(kept.restored, parts, strict=True)]

    def recoveries(self, measure: str = LOGIT_MSE.name) -> list[Score]:
        """How far a measure has come from the recipient's (0) to the donor's (1); the score, where there is one."""
        if measure == LOGIT_MSE.name and self.direction == "restore":
            return [self.of(r, self.prompts(r)) for r in range(len(self.plan))]
        self.measured(measure)
        name = "the logit MSE" if measure == LOGIT_MSE.name else measure
        return [self._recovered(measure, r, self.prompts(r), name) for r in range(len(self.plan))]

    def of(self, restoration: int, prompts: np.ndarray) -> Score:
        """The score of one restoration over some prompts; of a transplant, the recovery of the logit MSE."""
        kept = self.losses
        if self.direction != "restore":
            return self._recovered(LOGIT_MSE.name, restoration, prompts, "the logit MSE")
        return krs_score(
            kept.restored[restoration, prompts],
            kept.baseline[prompts],
            kept.mask[prompts],
            scoring=self.scoring,
            power=kept.power[prompts],
            dtype=self.dtype,
        )

    def _recovered(self, measure: str, restoration: int, prompts: np.ndarray, name: str) -> Score:
        """The recovery of a measure over some prompts; NaN where recipient and donor are equal up to rounding."""
        losses, kept, mask = self.losses, self.losses.of(measure), self.losses.mask[prompts]
        apart = max(losses.baseline[prompts][mask].mean(), losses.donor[prompts][mask].mean())
        if apart <= noise(losses.power[prompts][mask].mean(), self.dtype):
            return Score(float("nan"), nothing_unlearned(apart, "these prompts"))
        return recovery(kept.restored[restoration, prompts], kept.recipient[prompts], kept.donor[prompts], mask, name)

    def interval(self, level: float, measure: str) -> np.ndarray:
        """The percentiles of `recoveries` over bootstrap samples of the prompts, `[2, restoration]`: low and high.

        NaN where there is no recovery; samples that have none are left out.
        """
        kept = self.measured(measure)
        by_prompt = self.scoring == "paper-code" and measure == LOGIT_MSE.name
        edges = np.full((2, len(self.plan)), np.nan)
        numbers = np.array([not np.isnan(score.value) for score in self.recoveries(measure)])
        for rows, every in self._by_prompts():
            members = every[numbers[every]]
            if len(rows) > 1 and len(members):
                sides: Any = (kept.recipient[rows], kept.donor[rows], self.losses.mask[rows])
                samples = resampled(kept.restored[members][:, rows], *sides, per_prompt=by_prompt)
                edges[:, members] = _quantiles(samples, [(1 - level) / 2, (1 + level) / 2])
        return edges

    def _by_prompts(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The prompts that count for restorations, and which restorations these are."""
        places: tuple[int | None, ...] = self.plan.places or (None,)
        for i, place in enumerate(places):
            yield self.having(place), np.arange(i, len(self.plan), len(places))


def _quantiles(samples: np.ndarray, at: Sequence[float]) -> np.ndarray:
    """Quantiles `[level, restoration]` of samples `[sample, restoration]`, without those that have no number."""
    samples = np.where(np.isfinite(samples), samples, np.nan)
    found = np.full((len(at), samples.shape[1]), np.nan)
    some = ~np.isnan(samples).all(axis=0)
    found[:, some] = np.nanquantile(samples[:, some], at, axis=0)
    return found
