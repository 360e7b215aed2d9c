"""How far a measure has come from the recipient's value to the donor's, and how sure that is."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float

from krs.metrics.score import Score

_NOTHING = 1e-9
"""A span between recipient and donor, relative to their size, that is rounding."""


def recovery(
    restored: Float[np.ndarray, "prompt token"],
    recipient: Float[np.ndarray, "prompt token"],
    donor: Float[np.ndarray, "prompt token"],
    mask: Bool[np.ndarray, "prompt token"],
    name: str = "the measure",
) -> Score:
    """`(restored - recipient) / (donor - recipient)` of the means over scored tokens: 0 is the recipient, 1 the donor.

    >>> one = np.ones((1, 2), bool)
    >>> recovery(np.array([[-2.0, -2.0]]), np.array([[-4.0, -4.0]]), np.array([[-1.0, -3.0]]), one).value
    1.0

    For a distance to the donor, whose own value is 0, that is `1 - restored / recipient`, Eq. 3 for the logit MSE.
    NaN with the reason where recipient and donor do not differ, and where one of the three is not finite.
    """
    found, start, end = (float(values[mask].mean()) for values in (restored, recipient, donor))
    if not np.isfinite([found, start, end]).all():
        return Score(float("nan"), "not computed, or not finite")
    span = end - start
    if not abs(span) > _NOTHING * max(abs(start), abs(end)):
        return Score(float("nan"), f"{name} is the same for recipient and donor ({start:.4g}): recovery is undefined")
    return Score((found - start) / span)


def resampled(
    restored: Float[np.ndarray, "restoration prompt token"],
    recipient: Float[np.ndarray, "prompt token"],
    donor: Float[np.ndarray, "prompt token"],
    mask: Bool[np.ndarray, "prompt token"],
    *,
    per_prompt: bool = False,
    times: int = 2000,
    seed: int = 0,
) -> Float[np.ndarray, "sample restoration"]:
    """Recoveries of `times` sets of as many prompts, drawn from these with replacement.

    Args:
        restored: of each restoration.
        recipient: as it is.
        donor: as it is.
        mask: which tokens are scored.
        per_prompt: average each prompt's own ratio, as the paper's code does, not the ratio of the means.
        times: how many sets.
        seed: of the drawing.
    """
    n = len(mask)
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=times).astype(float)
    found, start, end = (np.where(mask, values, 0.0).sum(-1) for values in (restored, recipient, donor))
    with np.errstate(divide="ignore", invalid="ignore"):
        if per_prompt:
            return counts @ ((found - start) / (end - start)).T / n
        bottom = counts @ (end - start)
        return (counts @ (found - start).T) / bottom[:, None]
