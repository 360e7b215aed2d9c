"""The Knowledge Recovery Score and what it is made of."""

from krs.metrics.drift import Drift, drift
from krs.metrics.logits import HeadDistance, logit_mse, logit_power
from krs.metrics.score import SCORINGS, Score, krs_score

__all__ = ["SCORINGS", "Drift", "HeadDistance", "Score", "drift", "krs_score", "logit_mse", "logit_power"]
