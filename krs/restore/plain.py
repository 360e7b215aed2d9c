"""The plain engine: one forward of the recipient a restoration, through hooks, for every family.

It is the reference that a faster engine is compared with. It keeps of the donor only the activations that the plan
asks for, and of the logits only the scored positions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from krs.generation.forward import device_of, logits_at
from krs.hooks.anatomy import Anatomy
from krs.hooks.patch import patched
from krs.hooks.points import Patch, Setting
from krs.hooks.record import Recording, record
from krs.metrics.logits import logit_power
from krs.metrics.measures import Measure, ReferenceTokens, ScoredTokens
from krs.models.devices import on_host
from krs.prompts import TokenBatch
from krs.restore.job import Chunk, Job, Progress, Values
from krs.restore.plan import Plan, Restoration, for_prompts


class PlainEngine:
    """One forward a restoration, prompts in chunks that keep the donor's activations within the budget."""

    name = "plain"
    exact = True
    reads_donor_prompts = True

    def run(self, job: Job) -> Iterator[Chunk | Progress]:
        """Yields a chunk for each restoration of each run of prompts."""
        for rows in chunks(job):
            todo = job.todo(rows)
            yield Progress(len(job.plan) - len(todo), earlier=True)
            if todo:
                yield from _run_of_prompts(job, rows, todo)

    def steps(self, job: Job) -> int:
        """One a restoration and run of prompts."""
        return len(job.plan) * sum(1 for _ in chunks(job))


def chunks(job: Job) -> Iterator[slice]:
    """Prompts in runs whose recorded activations and logits fit into the budget; at least one prompt a run."""
    size = max(1, min(len(job.batch), job.budget // _bytes_per_prompt(job.plan, job.donor, job.batch)))
    size = 1 if job.batch.alone else size
    n = math.ceil(len(job.batch) / size)
    for part in np.array_split(np.arange(len(job.batch)), n):
        yield slice(int(part[0]), int(part[-1]) + 1)


def _bytes_per_prompt(plan: Plan, donor: Anatomy, batch: TokenBatch) -> int:
    config: Any = donor.model.config
    widest = max(config.hidden_size, getattr(config, "intermediate_size", None) or 4 * config.hidden_size)
    units = widest * sum(p.kind == "activation" for p in plan.points)
    head: Tensor = donor.model.get_output_embeddings().weight  # type: ignore[operator]
    logits = 4 * batch.n_scored * head.shape[0] * 4
    return max(map(len, batch.tokens)) * units * len(plan.layers) * 4 + logits


def _run_of_prompts(job: Job, rows: slice, todo: list[int]) -> Iterator[Chunk | Progress]:
    batch = job.batch.rows(rows.start, rows.stop)
    index = batch.scored_index()
    prompts, slots = torch.as_tensor(batch.mask).nonzero(as_tuple=True)  # a mask would make a device wait
    rows_of_head = job.vocabulary_rows

    def of_scored(logits: Tensor) -> Tensor:
        """Those of the scored tokens, prompt after prompt, `[token, vocab]`, where the recipient is."""
        picked = logits[prompts.to(logits.device), slots.to(logits.device), :rows_of_head]
        return picked.to(device_of(job.recipient.model))

    def scored(body: Anatomy) -> Tensor:
        return of_scored(logits_at(body.model, batch.inputs(device_of(body.model)), index))

    known, acts = _donor_side(job.part(rows), index)
    donor_logits = of_scored(known)
    recipient_logits = scored(job.recipient)
    sides = {id(job.donor): donor_logits, id(job.recipient): recipient_logits}
    against = sides.get(id(job.reference))
    reference = ReferenceTokens(
        scored(job.reference) if against is None else against, batch.target_ids.to(recipient_logits.device)
    )
    recipient, donor = (_measured(job.measures, logits, reference) for logits in (recipient_logits, donor_logits))
    power = logit_power(reference.logits).cpu().numpy()
    restorations = list(job.plan)
    for r in todo:
        what = f"{restorations[r].setting.name} at {restorations[r].window.name}"
        with patched(job.recipient.model, *_patches(restorations[r], job.donor, acts, batch, rows)):
            found = _measured(job.measures, scored(job.recipient), reference)
        values = {name: Values(v[None], recipient[name], donor[name]) for name, v in found.items()}
        yield Chunk(PlainEngine.name, [r], rows, values, power)
        yield Progress(1, what)


def _measured(measures: tuple[Measure, ...], logits: Tensor, reference: ReferenceTokens) -> dict[str, np.ndarray]:
    """Each measure of each token; all of them come to the host at once."""
    tokens = ScoredTokens(logits, reference)
    found = on_host([m(tokens) for m in measures]).double().numpy()
    return {m.name: values for m, values in zip(measures, found, strict=True)}


def _donor_side(job: Job, index: Tensor) -> tuple[Tensor, Recording | None]:
    """The donor's logits at the scored positions, and the activations that the plan puts."""
    inputs = job.batch.inputs(device_of(job.donor.model))
    activations = tuple(p for p in job.plan.points if p.kind == "activation")
    if not activations:
        return logits_at(job.donor.model, inputs, index), None
    if job.donor_batch is not None:
        theirs = job.donor_batch.inputs(device_of(job.donor.model))
        with record(job.donor.model, Setting(activations), layers=job.plan.layers) as acts:
            logits_at(job.donor.model, theirs, job.donor_batch.scored_index())
        return logits_at(job.donor.model, inputs, index), acts.moved(job.batch.aligned(job.donor_batch))
    with record(job.donor.model, Setting(activations), layers=job.plan.layers) as acts:
        logits = logits_at(job.donor.model, inputs, index)
    return logits, acts


def _patches(
    restoration: Restoration, donor: Anatomy, acts: Recording | None, batch: TokenBatch, rows: slice
) -> list[Patch]:
    place = restoration.placement
    where = batch.where(for_prompts(restoration.positions, rows))
    return [
        place.of(point).set(acts, where=where) if point.kind == "activation" else place.of(point).set(donor.model)
        for point in restoration.setting.points
    ]
