"""The Knowledge Recovery Score (Eq. 3 of Hong et al., EMNLP 2024)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from krs.errors import KrsError
from krs.prompts import Scoring

SCORINGS: tuple[Scoring, ...] = ("next-token", "paper-code")

_TOLERANCE = {"float64": 1e-5, "float32": 1e-5, "float16": 2.0**-10, "bfloat16": 2.0**-7}
"""Relative root-mean-square difference of logits below which two models are equal up to rounding."""


@dataclass(frozen=True)
class Score:
    """A score, and why it is NaN when it is.

    Attributes:
        value: 1 is full recovery, 0 none; it can be negative and is not clamped.
        reason: empty unless the value is NaN.
    """

    value: float
    reason: str = ""

    def __float__(self) -> float:
        return self.value


def krs_score(
    loss: Float[np.ndarray, "prompt token"],
    baseline: Float[np.ndarray, "prompt token"],
    mask: Bool[np.ndarray, "prompt token"] | None = None,
    *,
    scoring: Scoring = "next-token",
    power: Float[np.ndarray, "prompt token"] | None = None,
    dtype: str = "float32",
) -> Score:
    """`KRS = 1 - MSE(restored, vanilla) / MSE(unlearned, vanilla)`.

    >>> import numpy as np
    >>> krs_score(np.array([[1.0, 1.0]]), np.array([[4.0, 4.0]])).value
    0.75

    Args:
        loss: logit MSE of the restored model against the vanilla one, a number a scored token.
        baseline: the same of the unlearned model as it is.
        mask: which entries are scored; all if not given.
        scoring: `"next-token"` is Eq. 3, the ratio of the means over all scored tokens; `"paper-code"` is the mean
            over prompts of each prompt's own ratio, as in the released notebooks.
        power: mean squared vanilla logit of each token. With it, a baseline that is only rounding noise counts as
            zero.
        dtype: the models' dtype, which sets how large rounding noise is.

    Returns NaN with the reason where the denominator is zero: nothing was unlearned there; where a loss is NaN: it
    was not computed; and where one is infinite: the restored logits were.
    Raises `KrsError` for an unknown scoring.
    """
    if scoring not in SCORINGS:
        raise KrsError(f"scoring={scoring!r}: choose one of {', '.join(SCORINGS)}")
    kept = np.ones(loss.shape, bool) if mask is None else mask
    scale = np.zeros(loss.shape) if power is None else power
    if np.isnan(loss[kept]).any():
        return Score(float("nan"), "not computed")
    if not np.isfinite(loss[kept]).all():
        return Score(float("nan"), _not_finite(~np.isfinite(loss) & kept, dtype))
    if scoring == "next-token":
        bottom = baseline[kept].mean()
        if bottom <= noise(scale[kept].mean(), dtype):
            return Score(float("nan"), nothing_unlearned(bottom, "these prompts"))
        return Score(float(1 - loss[kept].mean() / bottom))
    counts = kept.sum(axis=1)
    mean = [np.where(kept, values, 0).sum(axis=1) / counts for values in (loss, baseline, scale)]
    zero = np.flatnonzero(mean[1] <= noise(mean[2], dtype))
    if zero.size:
        return Score(float("nan"), nothing_unlearned(mean[1][zero[0]], f"prompt {zero[0]}"))
    return Score(float(np.mean(1 - mean[0] / mean[1])))


def _not_finite(where: Bool[np.ndarray, "prompt token"], dtype: str) -> str:
    prompts = np.flatnonzero(where.any(axis=1))
    remedy = "; load both models in bfloat16 or float32" if dtype == "float16" else ""
    return (
        f"the restored model's logits are NaN or infinite on {len(prompts)} of {len(where)} prompts, though neither "
        f"model's own are: the restoration overflows in {dtype}{remedy}"
    )


def noise(power: Any, dtype: str) -> Any:
    """The logit MSE up to which two models of a dtype are equal up to rounding, where logits have this mean square."""
    return _TOLERANCE.get(dtype, 1e-5) ** 2 * power


def nothing_unlearned(bottom: float, where: str) -> str:
    """The reason where two models are equal."""
    return (
        f"the unlearned model's logits equal the vanilla ones on {where} (MSE {bottom:.1e}): nothing was unlearned "
        "there, so recovery is undefined"
    )
