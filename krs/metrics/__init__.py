"""The Knowledge Recovery Score and what it is made of."""

from krs.metrics.logits import logit_mse, logit_power
from krs.metrics.score import SCORINGS, Score, krs_score

__all__ = ["SCORINGS", "Score", "krs_score", "logit_mse", "logit_power"]
