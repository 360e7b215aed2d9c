"""Which engine runs a plan, and what happens when it cannot do it exactly."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np

from krs.errors import KrsError
from krs.generation.batching import neighbours_matter
from krs.hooks.anatomy import Anatomy
from krs.hooks.context import numerics, plain_calls, plain_numerics
from krs.metrics.measures import LOGIT_MSE, Measure
from krs.progress import bar
from krs.registry import Registry, module_of
from krs.restore.attribution import EstimateEngine
from krs.restore.finite import check_base, check_each, check_longest
from krs.restore.job import Chunk, Engine, Job, NotExactError
from krs.restore.losses import Losses, computed
from krs.restore.plain import PlainEngine
from krs.restore.plan import Plan
from krs.restore.shards import RayEngine
from krs.restore.wavefront import WavefrontEngine
from krs.wording import counted

_AUTO = ("wavefront", "plain")


def _take(name: str, made: Any) -> None:
    """What an entry point of the group `krs.engines` names: an engine, or its class."""
    register_engine(made() if isinstance(made, type) else made)


ENGINES: Registry[Engine] = Registry("engine", "krs.engines", take=_take)


def register_engine(engine: Engine) -> Engine:
    """Make an engine known by its name, for `krs.sweep(engine="…")`.

    A notebook's cell that registers one may be run again, changed. Raises `KrsError` for a name that another engine
    has, and for what is no engine.
    """
    if isinstance(engine, type):
        raise KrsError(f"{engine.__name__} is a class: register an engine, register_engine({engine.__name__}())")
    if not isinstance(engine, Engine):
        raise KrsError(f"{type(engine).__name__} is no engine: it needs a name, exact, run(job) and steps(job)")
    if engine.name == "auto":
        raise KrsError("an engine cannot be called 'auto', which stands for krs's choice: choose another name")
    return ENGINES.add(engine.name, engine, module_of(engine))


register_engine(WavefrontEngine())
register_engine(PlainEngine())
register_engine(EstimateEngine())
register_engine(RayEngine())


def engine_names() -> tuple[str, ...]:
    """Names that `engine=` takes: `auto`, those registered, and those of entry points in the group `krs.engines`."""
    return ("auto", *ENGINES.listed())


def is_engine(name: str) -> bool:
    """Whether `engine_names` has it; entry points, which take milliseconds to look up, only for one not registered."""
    return name in ("auto", *ENGINES) or name in engine_names()


def is_exact(name: str) -> bool:
    """Whether an engine of that name is known, and computes every number rather than estimate some."""
    return is_engine(name) and name != "auto" and find_engine(name).exact


def check_engine(name: str, measures: Sequence[Measure]) -> None:
    """Raise `KrsError` for measures that an engine says it cannot take, if it has a `check(measures)`."""
    check = None if name == "auto" else getattr(find_engine(name), "check", None)
    if check is not None:
        check(measures)


def taken_by(name: str, bodies: tuple[Anatomy, ...]) -> tuple[Anatomy, ...]:
    """The models; raises `KrsError` for those that an engine with a `check_models(bodies)` says it cannot take."""
    check = None if name == "auto" else getattr(find_engine(name), "check_models", None)
    if check is not None:
        check(bodies)
    return bodies


def check_plan(name: str, plan: Plan) -> None:
    """Raise `KrsError` for restorations that an engine says it cannot make, if it has a `check_plan(plan)`."""
    check = None if name == "auto" else getattr(find_engine(name), "check_plan", None)
    if check is not None:
        check(plan)


def find_engine(name: str) -> Engine:
    """An engine by a name that `engine_names` has; one of an entry point is loaded and registered."""
    return ENGINES[name]


def execute(
    engine: str,
    job: Job,
    losses: Losses,
    progress: bool,
    keeper: Callable[[Any], Any],
    made: dict[str, Any],
) -> None:
    """Fill `losses` with the engine asked for; `"auto"` takes the plain one where the fast one would not be exact.

    Args:
        engine: its name.
        job: what is to be done.
        losses: where the numbers go.
        progress: show a bar.
        keeper: makes of a progress bar one that also saves.
        made: provenance; gets the engine's name, in `engine_note` why it is not the fast one, in `numerics` what may
            change how it rounds, and in `batching` why prompts were run one at a time, if they were.

    Raises `KrsError` with the reason when an engine was asked for by name and it is not exact here.
    """
    with plain_numerics(), plain_calls(*{id(b): b.model for b in job.models}.values()):
        made["numerics"] = numerics()
        check_longest(job)
        _execute(engine, _apart(job, made), losses, progress, keeper, made)


def _apart(job: Job, made: dict[str, Any]) -> Job:
    """The job, marked to be run a prompt at a time where a prompt's numbers would depend on its neighbours."""
    for body in job.models:
        if why := neighbours_matter(body.model, job.batch.tokens):
            made["batching"] = f"a prompt at a time: {job.name_of(body)}: {why}"
            return replace(job, batch=replace(job.batch, alone=True))
    return job


def _execute(
    engine: str, job: Job, losses: Losses, progress: bool, keeper: Callable[[Any], Any], made: dict[str, Any]
) -> None:
    names = _AUTO if engine == "auto" else (engine,)
    plan = job.plan
    doing = f"sweep: {counted(len(plan.settings), 'setting')} x {counted(len(plan.windows), 'window')}"
    for name in names:
        chosen = find_engine(name)
        made["engine"], made["exact"] = name, chosen.exact
        try:
            if job.donor_batch is not None and not getattr(chosen, "reads_donor_prompts", False):
                raise NotExactError("the donor reads other prompts than the recipient")
            with bar(chosen.steps(job), doing, show=progress, unit="step") as shown:
                _collect(chosen, job, losses, keeper(shown))
            return
        except NotExactError as reason:
            made["engine_note"] = f"not the {name} engine: {reason}"
            if name == names[-1]:
                check_each(job)
                raise KrsError(
                    f"engine={name!r} is not exact here: {reason}. Use engine='auto', which takes the plain engine"
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
