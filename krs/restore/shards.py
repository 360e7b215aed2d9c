"""One sweep as shards of its prompts, each a Ray task with models of its own. Needs the extra `krs[cluster]`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from krs.cluster import Node, NoPlaceError, Room, Share, cause_of, check_here, connected, here, stop
from krs.errors import KrsError
from krs.extras import require
from krs.hooks.anatomy import Anatomy, anatomy
from krs.hooks.family import Family
from krs.hooks.offload import is_offloaded
from krs.metrics.measures import Measure
from krs.models.identity import differing, identity
from krs.models.load import load
from krs.models.places import locate
from krs.prompts import TokenBatch
from krs.restore.execution import execute
from krs.restore.job import Chunk, Job, Progress, Values
from krs.restore.losses import Losses
from krs.restore.plain import PlainEngine
from krs.restore.plan import Plan
from krs.restore.wavefront import WavefrontEngine

_SHARDS_A_WORKER = 4
"""So that workers end together, and an interrupted sweep has what is done. On a GPU each task has a process of its
own, which would load the models once more."""
_ELSE = "pass a directory that every node sees (save_pretrained), or another engine"


class RayEngine:
    """Prompts in shards, each carried out elsewhere: by the wavefront engine, or the plain one where that is not exact.

    Models do not travel: a worker loads them by the name that they were loaded by, with the same dtype, and compares
    every byte. So a model that was changed in memory, or never saved, is refused.

    >>> engine = RayEngine("ray_narrow", cpus=1)  # krs.restore.register_engine(engine), then engine="ray_narrow"

    Args:
        name: to register it by; `"ray"` is registered already.
        address: as `krs.cluster.connected` takes it.
        cpus: threads a worker, as many as torch uses here if not given.
        gpus: GPUs a worker, where the models are on one.
        shards: how many; a few for each worker if not given.
    """

    exact = True
    reads_donor_prompts = True

    def __init__(
        self,
        name: str = "ray",
        address: str | None = None,
        *,
        cpus: int | None = None,
        gpus: float | int | None = None,
        shards: int | None = None,
    ) -> None:
        if shards is not None and shards < 1:
            raise KrsError(f"shards={shards!r}: there has to be one at least")
        self.name, self.address, self.shards, self.room = name, address, shards, Room(cpus, gpus)

    def check(self, measures: Sequence[Measure]) -> None:
        """Raise `KrsError` where there is no Ray."""
        require("ray", "cluster", f"the engine {self.name!r}")

    def check_models(self, bodies: Sequence[Anatomy]) -> None:
        """Raise `KrsError` for models that workers cannot load by a name, before any of them runs."""
        for body in bodies:
            _Place.of(body)

    def steps(self, job: Job) -> int:
        """One a prompt."""
        return len(job.batch)

    def run(self, job: Job) -> Iterator[Chunk | Progress]:
        """Yields a chunk a shard, as they come."""
        models = job.models
        places = [_Place.of(body) for body in models]
        roles = [next(i for i, m in enumerate(models) if m is b) for b in (job.recipient, job.donor, job.reference)]
        on_gpu = places[0].device != "cpu"
        with connected(self.address) as nodes:
            import ray

            weights = sum(p.numel() * p.element_size() for body in models for p in body.model.parameters())
            share = (self.room if on_gpu else replace(self.room, gpus=0)).share(nodes, weights + job.budget)
            slots = [_slots(node, share) for node in nodes]
            common = ray.put(_Common(places, roles, job.measures, job.budget // max(slots), share.cpus, here()))
            task = ray.remote(_shard).options(**share.options)
            running: dict[Any, tuple[slice, list[int]]] = {}
            for rows in self._shards(len(job.batch), sum(slots), on_gpu):
                if todo := job.todo(rows):
                    running[task.remote(common, _ShardJob.of(job, rows))] = rows, todo
                else:
                    yield Progress(rows.stop - rows.start, earlier=True)
            try:
                while running:
                    for ref in ray.wait(list(running))[0]:
                        rows, todo = running.pop(ref)
                        yield _chunk(_result(ref, rows), rows, todo)
                        yield Progress(rows.stop - rows.start)
            finally:
                stop(list(running))

    def _shards(self, n_prompts: int, slots: int, on_gpu: bool) -> Iterator[slice]:
        wanted = self.shards or slots * (1 if on_gpu else _SHARDS_A_WORKER)
        for part in np.array_split(np.arange(n_prompts), min(n_prompts, wanted)):
            yield slice(int(part[0]), int(part[-1]) + 1)


@dataclass(frozen=True)
class _Place:
    """How a worker comes to one of the models."""

    name: str
    dtype: torch.dtype
    attention: str | None
    family: Family
    device: str
    known: dict[str, Any]

    @staticmethod
    def of(body: Anatomy) -> _Place:
        model: Any = body.model
        name = str(getattr(model, "name_or_path", "") or "")
        devices = {p.device for p in model.parameters()}
        if not name:
            raise KrsError(f"workers load models by name, and this {type(model).__name__} has none: {_ELSE}")
        if is_offloaded(model) or len(devices) > 1:
            raise KrsError(f"each worker holds whole models on one device, and {name!r} is on several: {_ELSE}")
        where, local = locate(name)
        (device,) = devices
        attention = getattr(model.config, "_attn_implementation", None)
        place = str(Path(where).resolve()) if local else name
        return _Place(place, model.dtype, attention, body.family, device.type, identity(model))

    def load(self) -> Anatomy:
        """In a worker: the model; raises `NoPlaceError` where the name leads to another one."""
        options = {} if self.attention is None else {"attn_implementation": self.attention}
        model, _ = load(self.name, dtype=self.dtype, device=self.device, **options)
        if other := differing(self.known, identity(model)):
            raise NoPlaceError(
                f"what {self.name!r} loads is not the model of this sweep, which was changed since or loaded otherwise "
                f"({', '.join(other)}): {_ELSE}"
            )
        return anatomy(model, family=self.family)


@dataclass(frozen=True, eq=False)
class _Common:
    """What all shards have in common; `roles` are the places of recipient, donor and reference."""

    places: list[_Place]
    roles: list[int]
    measures: tuple[Measure, ...]
    budget: int
    cpus: int
    versions: dict[str, Any]


@dataclass(frozen=True, eq=False)
class _ShardJob:
    """One shard: of a job, all that is no model."""

    plan: Plan
    batch: TokenBatch
    done: np.ndarray
    donor_batch: TokenBatch | None

    @staticmethod
    def of(job: Job, rows: slice) -> _ShardJob:
        part = job.part(rows)
        return _ShardJob(part.plan, part.batch, part.done, part.donor_batch)


_LOADED: list[tuple[list[_Place], list[Anatomy]]] = []
"""The models of the last shard that this worker had, for the next one."""


def _shard(common: _Common, part: _ShardJob) -> tuple[Losses, dict[str, Any]]:
    """In a worker: the numbers of one shard, and what made them."""
    check_here(common.versions)
    torch.set_num_threads(common.cpus)
    if not _LOADED or _LOADED[0][0] != common.places:
        _LOADED[:] = []  # before others are loaded
        _LOADED.append((common.places, [place.load() for place in common.places]))
    recipient, donor, reference = (_LOADED[0][1][i] for i in common.roles)
    done = part.done.copy()  # what comes through Ray cannot be written
    rest = common.measures, common.budget, done, part.donor_batch
    job = Job(part.plan, recipient, donor, reference, part.batch, *rest)
    losses = Losses.empty(job.plan, job.batch, job.measures)
    made: dict[str, Any] = {}
    execute((WavefrontEngine(), PlainEngine()), job, losses, False, lambda shown: shown, made)
    return losses, made


def _result(ref: Any, rows: slice) -> tuple[Losses, dict[str, Any]]:
    import ray

    try:
        found: tuple[Losses, dict[str, Any]] = ray.get(ref)
        return found
    except ray.exceptions.RayError as reason:
        cause = cause_of(reason)
        raise KrsError(f"the shard of prompts {rows.start} to {rows.stop - 1}, counted within it: {cause}") from None


def _chunk(found: tuple[Losses, dict[str, Any]], rows: slice, todo: list[int]) -> Chunk:
    losses, made = found
    values = {}
    for name in ("logit_mse", *losses.measured):
        one = losses.of(name)
        restored = one.restored[todo][:, losses.mask]
        values[name] = Values(restored, one.recipient[losses.mask], one.donor[losses.mask])
    return Chunk(made["engine"], todo, rows, values, losses.power[losses.mask], made.get("engine_note", ""))


def _slots(node: Node, share: Share) -> int:
    """How many tasks a node takes at a time."""
    by_gpu = int(node.gpus / share.gpus) if share.gpus else node.cpus
    by_memory = node.memory // share.memory if share.memory else node.cpus
    return min(node.cpus // share.cpus, by_gpu, by_memory)
