"""The wavefront engine: every restoration of a plan in one pass through the layers, the two models in lockstep.

At each layer there is a row for the base run of the unlearned model and one for each different history of restorations
so far (`wave.schedule`). The vanilla model is run one layer, its activations at the plan's points are put into the
rows that restore them there, and everything moves on to the next layer: each weight of each model is touched once,
and nothing is kept of a layer but its rows.

What is restored as a constant is not computed: a restored attention output skips the attention, restored
coefficients skip the MLP, both together leave an addition. In the first layer of a window everything before the
restored point is still the base's. Prompts share what they begin with (`wave.packing`).

The pass checks itself as it goes: one prompt runs beside it through the models as anyone would call them, at each layer
the constants that stand in for modules have to reproduce the base row, and of each set of interventions one restoration
of that prompt is made with hooks as well. Where one of these fails, the pass stops with `NotExactError`, and the plain
engine takes over.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from krs._typing import Positions
from krs.generation.forward import device_of, is_foreign
from krs.hooks.anatomy import Anatomy
from krs.hooks.idle import acting_hooks
from krs.hooks.interventions import Intervention
from krs.hooks.offload import is_offloaded
from krs.hooks.rope import following, start_afresh
from krs.restore.job import Chunk, Job, NotExactError, Progress
from krs.restore.plan import Plan, Restoration, for_prompts
from krs.restore.wave.allocator import freed_memory_kept
from krs.restore.wave.attention import CannotPackError, can_pack
from krs.restore.wave.layout import packed, padded
from krs.restore.wave.passes import Finished, Pass, per_device
from krs.restore.wave.schedule import schedule
from krs.restore.wave.scorer import Scorer

_GROUP_TOKENS = {"cpu": 4096, "cuda": 65536}
"""Tokens of the prompts that one pass takes."""


_AT_LEAST = 64
"""Restorations of one pass, however little memory there is: each pass runs both models once more."""


class WavefrontEngine:
    """Every restoration in one pass through the layers, a group of prompts at a time."""

    name = "wavefront"
    exact = True

    def run(self, job: Job) -> Iterator[Chunk | Progress]:
        """Yields a chunk a group, in a long pass several, and progress a layer.

        Raises `NotExactError`, the groups before it yielded, where a pass would not be exact.
        """
        refuse(job)
        scorer: Scorer | None = None
        total = _layer_runs(job.plan, range(len(job.plan)))
        with freed_memory_kept():
            for rows in groups(job):
                parts = _parts(job, job.todo(rows), rows)
                yield Progress(total - sum(_layer_runs(job.plan, todo) for todo in parts), earlier=True)
                for todo in parts:
                    with torch.no_grad():
                        scorer = scorer or Scorer(job)
                    yield from _group(job, todo, rows, scorer)

    def steps(self, job: Job) -> int:
        """One a row and layer."""
        return _layer_runs(job.plan, range(len(job.plan))) * sum(1 for _ in groups(job))


def refuse(job: Job) -> None:
    """Raise `NotExactError` for models that are not what their modules say: somebody else's hooks act in them, or
    somebody else's forward is around their layers or their head.

    Also for models in which the rows of a forward act on each other, other than by how long they are: rows of one
    prompt are all of one length.
    """
    if job.batch.alone and not (following(job.donor.model) or following(job.recipient.model)):
        raise NotExactError("what a row gives depends on the other rows that are computed with it")
    for body in job.models:
        for module in (body.model, body.decoder):
            if is_foreign(module):
                raise NotExactError(f"{type(module).__name__} has a forward that is none of transformers'")
    for body in (job.donor, job.recipient):
        for where in acting_hooks(body.model):
            raise NotExactError(f"there are hooks on {where}")


def groups(job: Job) -> Iterator[slice]:
    """Prompts in runs whose rows take up to half of the budget (the layers' own tensors have the other half).

    At least one prompt a run. Of an offloaded model's prompts as many as fit are in a run, for each run reads all its
    weights once.
    """
    batch = job.batch
    rows = max(map(len, schedule(job.plan).steps))
    longest = max(map(len, batch.tokens))
    tokens = job.budget // 2 // (rows * _bytes_per_state(job.donor))
    if not is_offloaded(job.donor.model):
        tokens = min(tokens, per_device(_GROUP_TOKENS, device_of(job.donor.model)))
    n = len(batch) if batch.alone else math.ceil(len(batch) / max(1, min(len(batch), tokens // longest)))
    for part in np.array_split(np.arange(len(batch)), n):
        yield slice(int(part[0]), int(part[-1]) + 1)


def _parts(job: Job, todo: list[int], rows: slice) -> list[list[int]]:
    """The restorations in runs whose rows, of these prompts, take up to half of the budget; at least 64 a run."""
    per_row = _bytes_per_state(job.donor) * sum(map(len, job.batch.tokens[rows]))
    size = max(_AT_LEAST, job.budget // 2 // per_row - 1)
    return [todo[i : i + size] for i in range(0, len(todo), size)]


def _bytes_per_state(body: Anatomy) -> int:
    """Bytes of one token's hidden state."""
    config: Any = body.model.config
    dtype = next(p.dtype for p in body.layers.parameters() if p.is_floating_point())
    return int(config.hidden_size) * dtype.itemsize


def _layer_runs(plan: Plan, todo: Sequence[int]) -> int:
    restorations = list(plan)
    return schedule(plan, [restorations[r] for r in todo]).layer_runs if todo else 0


def _group(job: Job, todo: list[int], rows: slice, scorer: Scorer) -> Iterator[Chunk | Progress]:
    """One pass for some prompts: packed if the models can attend so, padded otherwise."""
    start_afresh(job.donor.model)
    start_afresh(job.recipient.model)
    every = list(job.plan)
    restorations = [every[r] for r in todo]
    checked = _one_of_each(restorations)
    batch = job.batch.rows(rows.start, rows.stop)
    positions = _masks(restorations, rows)
    layouts = [padded]
    if all(can_pack(body.layers[0]) and body.attends for body in (job.donor, job.recipient)):
        layouts = [packed, padded]
    for lay_out in layouts:
        done = 0
        try:
            with torch.no_grad():
                made = Pass(job, batch, lay_out(batch, positions), restorations, checked, positions)
            for step in _without_gradients(made.run(scorer)):
                if isinstance(step, Finished):
                    which = [todo[r] for r in step.restorations]
                    yield Chunk(WavefrontEngine.name, which, rows, step.values, step.power)
                else:
                    done += step
                    yield Progress(step)
            return
        except (CannotPackError, NotExactError):
            yield Progress(-done)
            if lay_out is layouts[-1]:
                raise


def _without_gradients(steps: Iterator[int | Finished]) -> Iterator[int | Finished]:
    """Each step of a pass without gradients, which the caller has again while a step is handed out."""
    while True:
        with torch.no_grad():
            try:
                step = next(steps)
            except StopIteration:
                return
        yield step


def _masks(restorations: Sequence[Restoration], rows: slice) -> dict[Positions, Positions]:
    """Each way to say positions, and what it says of these prompts."""
    return {r.positions: for_prompts(r.positions, rows) for r in restorations}


def _one_of_each(restorations: Sequence[Restoration]) -> list[int]:
    """For each different set of interventions one restoration, one in the middle."""
    found: dict[frozenset[Intervention], list[int]] = {}
    for i, restoration in enumerate(restorations):
        found.setdefault(restoration.interventions, []).append(i)
    return [same[len(same) // 2] for same in found.values()]
