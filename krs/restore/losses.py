"""What an engine hands back: the numbers that scores are made of, `[restoration, prompt, token]`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from krs.metrics.measures import LOGIT_MSE, Measure
from krs.prompts import TokenBatch
from krs.restore.plan import Plan


@dataclass(frozen=True)
class Measured:
    """One measure; NaN where nothing was computed.

    Attributes:
        restored: float64 `[restoration, prompt, token]`, in the plan's order.
        recipient: float64 `[prompt, token]`, of the recipient as it is: where a recovery is 0.
        donor: float64 `[prompt, token]`, of the donor as it is: where it is 1.
    """

    restored: np.ndarray
    recipient: np.ndarray
    donor: np.ndarray

    @staticmethod
    def empty(restorations: int, shape: tuple[int, int]) -> Measured:
        """Room for it."""
        return Measured(np.full((restorations, *shape), np.nan), np.full(shape, np.nan), np.full(shape, np.nan))


@dataclass(frozen=True)
class Losses:
    """What was measured, filled in as an engine goes.

    NaN where nothing was computed yet; a logit MSE is infinite where the restored model's logits were NaN or infinite.

    `restored` and `baseline` are the logit MSEs against the reference, which Eq. 3 is made of; other measures stand in
    `measured`.

    Attributes:
        restored: float64 `[restoration, prompt, token]`, in the plan's order.
        baseline: float64 `[prompt, token]`, of the recipient (the unlearned model) as it is.
        power: float64 `[prompt, token]`, mean squared logit of the reference: the scale of both.
        mask: bool `[prompt, token]`, true where there is a scored token.
        donor: float64 `[prompt, token]`, of the donor as it is: 0 where the donor is the reference.
        measured: every further measure, by name.
    """

    restored: np.ndarray
    baseline: np.ndarray
    power: np.ndarray
    mask: np.ndarray
    donor: np.ndarray
    measured: dict[str, Measured] = field(default_factory=dict)

    @staticmethod
    def empty(plan: Plan, batch: TokenBatch, measures: Sequence[Measure] = ()) -> Losses:
        """Room for a plan's numbers on a batch, nothing computed yet."""
        shape = (len(batch), batch.n_scored)
        first = Measured.empty(len(plan), shape)
        more = {m.name: Measured.empty(len(plan), shape) for m in measures if m != LOGIT_MSE}
        return Losses(first.restored, first.recipient, np.full(shape, np.nan), batch.mask, first.donor, more)

    def of(self, name: str) -> Measured:
        """The numbers of one measure; `KeyError` for one that was not asked for."""
        if name == LOGIT_MSE.name:
            return Measured(self.restored, self.baseline, self.donor)
        return self.measured[name]

    def done(self, restoration: int, rows: slice) -> bool:
        """Whether a restoration is computed for these prompts."""
        return not np.isnan(self.restored[restoration, rows][self.mask[rows]]).any()

    @property
    def computed(self) -> np.ndarray:
        """Bool `[restoration, prompt]`: what is computed, of every measure."""
        every = (self.restored, *(m.restored for m in self.measured.values()))
        return np.logical_and.reduce([(~np.isnan(values) | ~self.mask).all(axis=-1) for values in every])

    @property
    def complete(self) -> bool:
        """Whether every restoration is computed for every prompt."""
        return all(self.done(r, slice(None)) for r in range(len(self.restored)))


def computed(values: np.ndarray) -> np.ndarray:
    """Losses as `Losses.restored` keeps them: whatever is no number is infinite, for NaN means not computed yet."""
    return np.where(np.isfinite(values), values, np.inf)
