"""Neither model may give NaN or infinite logits of its own: then there is nothing to restore, and no score."""

from __future__ import annotations

import numpy as np

from krs.generation.forward import accepted, device_of, logits_at
from krs.hooks.anatomy import Anatomy
from krs.hooks.finite import is_finite, refuse_not_finite
from krs.hooks.offload import is_offloaded
from krs.prompts import TokenBatch
from krs.restore.job import Job
from krs.restore.losses import Losses


def check_longest(job: Job) -> None:
    """Raise `KrsError` if a model gives NaN or infinity on the longest prompt: asked before the long work.

    The reference has answered the prompts by then; where answers were given, `check_base` finds it out.
    """
    longest = max(range(len(job.batch)), key=lambda i: len(job.batch.tokens[i]))
    for side, body in job.sides.items():
        if body is not job.reference and not is_offloaded(body.model):
            _check_prompt(side, body, job.batch, longest)


def check_each(job: Job, batch: TokenBatch | None = None, before: int = 0) -> None:
    """The same of every model and every prompt, to find out why an engine could not do its work."""
    batch = job.batch if batch is None else batch
    for i in range(len(batch)):
        for side, body in job.sides.items():
            _check_prompt(side, body, batch, i, before)


def _check_prompt(side: str, body: Anatomy, batch: TokenBatch, i: int, before: int = 0) -> None:
    prompt = batch.rows(i, i + 1)
    inputs = prompt.inputs(device_of(body.model))
    if not is_finite(logits_at(body.model, inputs, prompt.scored_index())):
        refuse_not_finite(body.model, side, accepted(body.model, inputs), f" on prompt {before + i}")


def check_base(job: Job, losses: Losses, rows: slice) -> bool:
    """Whether what an engine found of the models as they are is finite, on the prompts `rows`.

    Raises `KrsError` where a model itself is not; false where it is, and only the engine's numbers are not.
    """
    mask = losses.mask[rows]
    wrong = ~(np.isfinite(losses.power[rows]) & np.isfinite(losses.baseline[rows])) & mask
    for i in np.flatnonzero(wrong.any(axis=1)):
        prompt = rows.start + int(i)
        check_each(job, job.batch.rows(prompt, prompt + 1), prompt)
    return not wrong.any()
