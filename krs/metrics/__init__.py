"""The Knowledge Recovery Score and what it is made of; behaviour; drift."""

from krs.metrics.answers import Answers, answers
from krs.metrics.answers_file import load_answers
from krs.metrics.drift import Drift, drift
from krs.metrics.logits import HeadDistance, logit_mse, logit_power
from krs.metrics.score import SCORINGS, Score, krs_score

__all__ = [
    "SCORINGS",
    "Answers",
    "Drift",
    "HeadDistance",
    "Score",
    "answers",
    "drift",
    "krs_score",
    "load_answers",
    "logit_mse",
    "logit_power",
]
