"""A job is carried out by an engine, and by the next where one cannot do it exactly."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np

from krs.errors import KrsError
from krs.generation.batching import neighbours_matter
from krs.hooks.context import numerics, plain_calls, plain_numerics
from krs.metrics.measures import LOGIT_MSE
from krs.progress import bar
from krs.restore.finite import check_base, check_each, check_longest
from krs.restore.job import Chunk, Engine, Job, NotExactError
from krs.restore.losses import Losses, computed
from krs.wording import counted


def execute(
    engines: Sequence[Engine],
    job: Job,
    losses: Losses,
    progress: bool,
    saving: Callable[[Any], Any],
    made: dict[str, Any],
) -> None:
    """Fill `losses` with the first of these engines that is exact here.

    Args:
        engines: one at least.
        job: what is to be done.
        losses: where the numbers go.
        progress: show a bar.
        saving: makes of a progress bar one that also saves.
        made: provenance; gets the engine's name, in `engine_note` why it is not the fast one, in `numerics` what may
            change how it rounds, and in `batching` why prompts were run one at a time, if they were.

    Raises `KrsError` with the reason when none of them is exact here.
    """
    with plain_numerics(), plain_calls(*{id(b): b.model for b in job.models}.values()):
        made["numerics"] = numerics()
        check_longest(job)
        _execute(engines, _apart(job, made), losses, progress, saving, made)


def _apart(job: Job, made: dict[str, Any]) -> Job:
    """The job, marked to be run a prompt at a time where a prompt's numbers would depend on its neighbours."""
    for body in job.models:
        if why := neighbours_matter(body.model, job.batch.tokens):
            made["batching"] = f"a prompt at a time: {job.name_of(body)}: {why}"
            return replace(job, batch=replace(job.batch, alone=True))
    return job


def _execute(
    engines: Sequence[Engine],
    job: Job,
    losses: Losses,
    progress: bool,
    saving: Callable[[Any], Any],
    made: dict[str, Any],
) -> None:
    plan = job.plan
    doing = f"sweep: {counted(len(plan.settings), 'setting')} x {counted(len(plan.windows), 'window')}"
    for engine in engines:
        made["engine"], made["exact"] = engine.name, engine.exact
        try:
            if job.donor_batch is not None and not getattr(engine, "reads_donor_prompts", False):
                raise NotExactError("the donor reads other prompts than the recipient")
            with bar(engine.steps(job), doing, show=progress and not job.done.all(), unit="step") as shown:
                _collect(engine, job, losses, saving(shown))
            return
        except NotExactError as reason:
            made["engine_note"] = f"not the {engine.name} engine: {reason}"
            if engine is engines[-1]:
                check_each(job)
                raise KrsError(
                    f"engine={engine.name!r} is not exact here: {reason}. Use engine='auto', which takes the plain "
                    "engine"
                ) from None


def _collect(engine: Engine, job: Job, losses: Losses, shown: Any) -> None:
    """Put the numbers of an engine's chunks where they belong."""
    mine = replace(job, done=job.done.copy())  # what is done when the engine begins, whatever it cuts out of it
    with closing(engine.run(mine)) as steps:  # type: ignore[type-var]
        for step in steps:
            if isinstance(step, Chunk):
                write(step, job, losses)
                if step.engine != engine.name:
                    shown.made_by(step)
                if not check_base(job, losses, step.prompts):
                    raise NotExactError("its base row is NaN or infinite where the model by itself is not")
            else:
                if step.what:
                    shown.set_postfix_str(step.what)
                if step.earlier:
                    shown.initial += step.steps
                shown.update(step.steps)
    if missing := int((~job.done).any(axis=1).sum()):
        raise KrsError(
            f"the engine {engine.name!r} has ended, and {missing} of {counted(len(job.plan), 'restoration')} have no "
            "numbers: it has to yield a Chunk for all that job.done leaves open"
        )


def write(chunk: Chunk, job: Job, losses: Losses) -> None:
    """One chunk's numbers into the arrays; what was done already stays as it is.

    Raises `KrsError` for an engine that leaves out a measure, or whose numbers are not those of its prompts' tokens.
    """
    if missing := [m.name for m in job.measures if m.name not in chunk.values]:
        raise KrsError(f"the engine {chunk.engine!r} gave no {missing[0]}, which was asked for")
    _require_sizes(chunk, int(losses.mask[chunk.prompts].sum()))
    rows, mask = chunk.prompts, losses.mask[chunk.prompts]
    fresh = np.logical_not(np.logical_and.reduce(job.done[:, rows], axis=1))
    for name, values in chunk.values.items():
        into = losses.of(name)
        into.recipient[rows][mask] = values.recipient
        into.donor[rows][mask] = values.donor
        for r, found in zip(chunk.restorations, values.restored, strict=True):
            if fresh[r]:
                into.restored[r, rows][mask] = computed(found) if name == LOGIT_MSE.name else found
    losses.power[rows][mask] = chunk.power
    job.done[list(chunk.restorations), rows] = True


def _require_sizes(chunk: Chunk, tokens: int) -> None:
    """Raise `KrsError` unless there is a number for each restoration and scored token that a chunk is about."""
    wanted = {"restored": (len(chunk.restorations), tokens), "recipient": (tokens,), "donor": (tokens,)}
    for name, values in chunk.values.items():
        for side, shape in wanted.items():
            found = np.shape(getattr(values, side))
            if found != shape:
                raise KrsError(
                    f"the engine {chunk.engine!r} gave {side} {name} of shape {list(found)} for {chunk.prompts} of the "
                    f"job's prompts, which have to be {list(shape)}: chunk.prompts counts in the whole job, also where "
                    "an engine has cut it"
                )
