"""A sweep's scores: a number a restoration, made of what was measured at each token of each prompt."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from krs.errors import KrsError
from krs.metrics.measures import LOGIT_MSE
from krs.metrics.recovery import recovery, resampled
from krs.metrics.score import Score, krs_score
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
        kept, mask, found = self.measured(measure), self.losses.mask, []
        for r, values in enumerate(kept.restored):
            rows = self.prompts(r)
            found.append(recovery(values[rows], kept.recipient[rows], kept.donor[rows], mask[rows], measure))
        return found

    def of(self, restoration: int, prompts: np.ndarray) -> Score:
        """The score of one restoration over some prompts; of a transplant, the recovery of the logit MSE."""
        kept = self.losses
        if self.direction != "restore":
            return recovery(
                kept.restored[restoration, prompts],
                kept.baseline[prompts],
                kept.donor[prompts],
                kept.mask[prompts],
                "the logit MSE",
            )
        return krs_score(
            kept.restored[restoration, prompts],
            kept.baseline[prompts],
            kept.mask[prompts],
            scoring=self.scoring,
            power=kept.power[prompts],
            dtype=self.dtype,
        )

    def interval(self, level: float, measure: str) -> np.ndarray:
        """The percentiles of `recoveries` over bootstrap samples of the prompts, `[2, restoration]`: low and high."""
        kept = self.measured(measure)
        by_prompt = self.scoring == "paper-code" and measure == LOGIT_MSE.name
        edges = np.full((2, len(self.plan)), np.nan)
        for rows, members in self._by_prompts():
            if len(rows) > 1:
                sides: Any = (kept.recipient[rows], kept.donor[rows], self.losses.mask[rows])
                samples = resampled(kept.restored[members][:, rows], *sides, per_prompt=by_prompt)
                edges[:, members] = np.nanquantile(samples, [(1 - level) / 2, (1 + level) / 2], axis=0)
        return edges

    def _by_prompts(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """The prompts that count for restorations, and which restorations these are."""
        places: tuple[int | None, ...] = self.plan.places or (None,)
        for i, place in enumerate(places):
            yield self.having(place), np.arange(i, len(self.plan), len(places))
