"""The Knowledge Recovery Score and what it is made of; behaviour; drift; the account of weights; value vectors."""

from krs.metrics.account import account
from krs.metrics.account_check import check_account
from krs.metrics.account_result import Account, load_account
from krs.metrics.answers import answers
from krs.metrics.answers_file import load_answers
from krs.metrics.answers_result import Answers
from krs.metrics.completion import text_completion
from krs.metrics.drift import Drift, drift
from krs.metrics.logits import HeadDistance, logit_mse, logit_power
from krs.metrics.score import SCORINGS, Score, krs_score
from krs.metrics.vocabulary import vocabulary
from krs.metrics.vocabulary_result import ValueTokens, load_vocabulary

__all__ = [
    "SCORINGS",
    "Account",
    "Answers",
    "Drift",
    "HeadDistance",
    "Score",
    "ValueTokens",
    "account",
    "answers",
    "check_account",
    "drift",
    "krs_score",
    "load_account",
    "load_answers",
    "load_vocabulary",
    "logit_mse",
    "logit_power",
    "text_completion",
    "vocabulary",
]
