"""Neither model may give NaN or infinite logits of its own: then there is nothing to restore, and no score."""

from __future__ import annotations

import numpy as np

from krs.generation.forward import accepted, device_of, logits_at
from krs.hooks.anatomy import Anatomy
from krs.hooks.finite import is_finite, refuse_not_finite
from krs.prompts import TokenBatch
from krs.restore.losses import Losses


def check_longest(unlearned: Anatomy, batch: TokenBatch) -> None:
    """Raise `KrsError` if the unlearned model gives NaN or infinity on the longest prompt: asked before the long work.

    The vanilla model has answered the prompts by then; where answers were given, `check_base` finds it out.
    """
    longest = max(range(len(batch)), key=lambda i: len(batch.tokens[i]))
    _check_prompt("unlearned", unlearned, batch, longest)


def check_each(vanilla: Anatomy, unlearned: Anatomy, batch: TokenBatch) -> None:
    """The same of both models and every prompt, to find out why an engine could not do its work."""
    for i in range(len(batch)):
        _check_prompt("vanilla", vanilla, batch, i)
        _check_prompt("unlearned", unlearned, batch, i)


def _check_prompt(side: str, body: Anatomy, batch: TokenBatch, i: int, before: int = 0) -> None:
    prompt = batch.rows(i, i + 1)
    inputs = prompt.inputs(device_of(body.model))
    if not is_finite(logits_at(body.model, inputs, prompt.scored_index())):
        refuse_not_finite(body.model, side, accepted(body.model, inputs), f" on prompt {before + i}")


def check_base(vanilla: Anatomy, unlearned: Anatomy, batch: TokenBatch, losses: Losses, rows: slice) -> bool:
    """Whether what an engine found of the two models as they are is finite, on the prompts `rows` (= `batch`).

    Raises `KrsError` where a model itself is not; false where it is, and only the engine's numbers are not.
    """
    mask = losses.mask[rows]
    wrong = ~(np.isfinite(losses.power[rows]) & np.isfinite(losses.baseline[rows])) & mask
    for i in np.flatnonzero(wrong.any(axis=1)):
        _check_prompt("vanilla", vanilla, batch, int(i), rows.start)
        _check_prompt("unlearned", unlearned, batch, int(i), rows.start)
    return not wrong.any()
