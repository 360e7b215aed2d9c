"""What an engine hands back: the numbers that a score is made of, `[restoration, prompt, token]`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from krs.prompts import TokenBatch
from krs.restore.plan import Plan


@dataclass(frozen=True)
class Losses:
    """Logit MSEs against the vanilla model, filled in as an engine goes.

    NaN where nothing was computed yet, infinity where the restored model's logits were NaN or infinite.

    Attributes:
        restored: float64 `[restoration, prompt, token]`, in the plan's order.
        baseline: float64 `[prompt, token]`, of the unlearned model as it is.
        power: float64 `[prompt, token]`, mean squared vanilla logit: the scale of both.
        mask: bool `[prompt, token]`, true where there is a scored token.
    """

    restored: np.ndarray
    baseline: np.ndarray
    power: np.ndarray
    mask: np.ndarray

    @staticmethod
    def empty(plan: Plan, batch: TokenBatch) -> Losses:
        """Room for a plan's losses on a batch, nothing computed yet."""
        shape = (len(batch), batch.n_scored)
        nan = np.full(shape, np.nan)
        return Losses(np.full((len(plan), *shape), np.nan), nan.copy(), nan.copy(), batch.mask)

    def done(self, restoration: int, rows: slice) -> bool:
        """Whether a restoration is computed for these prompts."""
        return not np.isnan(self.restored[restoration, rows][self.mask[rows]]).any()

    @property
    def complete(self) -> bool:
        """Whether every restoration is computed for every prompt."""
        return all(self.done(r, slice(None)) for r in range(len(self.restored)))


def computed(values: np.ndarray) -> np.ndarray:
    """Losses as `Losses.restored` keeps them: whatever is no number is infinite, for NaN means not computed yet."""
    return np.where(np.isfinite(values), values, np.inf)
