"""Neither model may give NaN or infinite logits of its own: then there is nothing to restore, and no score."""

from __future__ import annotations

import numpy as np

from krs.generation.forward import accepted, device_of, logits_at
from krs.hooks.anatomy import Anatomy
from krs.hooks.finite import is_finite, refuse_not_finite
from krs.prompts import TokenBatch
from krs.restore.losses import Losses


def check_longest(vanilla: Anatomy, unlearned: Anatomy, batch: TokenBatch) -> None:
    """Raise `KrsError` if either model gives NaN or infinity on the longest prompt: asked before the long work."""
    longest = max(range(len(batch)), key=lambda i: len(batch.tokens[i]))
    check_prompt(vanilla, unlearned, batch.rows(longest, longest + 1), longest)


def check_each(vanilla: Anatomy, unlearned: Anatomy, batch: TokenBatch) -> None:
    """The same of every prompt, to find out why an engine could not do its work."""
    for i in range(len(batch)):
        check_prompt(vanilla, unlearned, batch.rows(i, i + 1), i)


def check_prompt(vanilla: Anatomy, unlearned: Anatomy, prompt: TokenBatch, number: int) -> None:
    """Raise `KrsError` that names the model and what in it is wrong, if it gives NaN or infinity on one prompt."""
    index = prompt.scored_index()
    for side, body in (("vanilla", vanilla), ("unlearned", unlearned)):
        inputs = prompt.inputs(device_of(body.model))
        if not is_finite(logits_at(body.model, inputs, index)):
            refuse_not_finite(body.model, side, accepted(body.model, inputs), f" on prompt {number}")


def check_base(vanilla: Anatomy, unlearned: Anatomy, batch: TokenBatch, losses: Losses, rows: slice) -> bool:
    """Whether what an engine found of the two models as they are is finite, on the prompts `rows` (= `batch`).

    Raises `KrsError` where a model itself is not; false where it is, and only the engine's numbers are not.
    """
    mask = losses.mask[rows]
    wrong = ~(np.isfinite(losses.power[rows]) & np.isfinite(losses.baseline[rows])) & mask
    for i in np.flatnonzero(wrong.any(axis=1)):
        check_prompt(vanilla, unlearned, batch.rows(int(i), int(i) + 1), rows.start + int(i))
    return not wrong.any()
