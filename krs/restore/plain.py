"""The plain engine: one forward of the unlearned model a restoration, through hooks, for every family.

It is the reference that a faster engine is compared with. It keeps of the vanilla model only the activations that
the plan asks for, and of the logits only the scored positions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from torch import Tensor

from krs.generation.forward import device_of, logits_at
from krs.hooks.anatomy import Anatomy
from krs.hooks.patch import patched
from krs.hooks.points import Patch, Setting
from krs.hooks.record import Recording, record
from krs.metrics.logits import logit_mse, logit_power
from krs.models.pair import shared_rows
from krs.prompts import TokenBatch
from krs.restore.finite import check_base
from krs.restore.losses import Losses, computed
from krs.restore.plan import Plan, Restoration

NAME = "plain"


def run(
    plan: Plan,
    vanilla: Anatomy,
    unlearned: Anatomy,
    batch: TokenBatch,
    losses: Losses,
    budget: int,
    shown: Any,
) -> None:
    """Fill `losses`, prompts in chunks that keep the vanilla model's recorded activations under `budget` bytes.

    What `losses` holds already is not computed again. `shown` is a progress bar of `steps(…)` steps.
    """
    for rows in chunks(plan, vanilla, batch, budget):
        _chunk(plan, vanilla, unlearned, batch.rows(rows.start, rows.stop), losses, rows, shown)


def steps(plan: Plan, vanilla: Anatomy, batch: TokenBatch, budget: int) -> int:
    """How many times `run` will update its progress bar."""
    return len(plan) * sum(1 for _ in chunks(plan, vanilla, batch, budget))


def chunks(plan: Plan, vanilla: Anatomy, batch: TokenBatch, budget: int) -> Iterator[slice]:
    """Prompts in runs whose recorded activations and logits fit into the budget; at least one prompt a run."""
    each = _bytes_per_prompt(plan, vanilla, batch)
    size = 1 if batch.alone else max(1, min(len(batch), budget // each))
    n = math.ceil(len(batch) / size)
    for part in np.array_split(np.arange(len(batch)), n):
        yield slice(int(part[0]), int(part[-1]) + 1)


def _bytes_per_prompt(plan: Plan, vanilla: Anatomy, batch: TokenBatch) -> int:
    length = max(map(len, batch.tokens))
    config: Any = vanilla.model.config
    widest = max(config.hidden_size, getattr(config, "intermediate_size", None) or 4 * config.hidden_size)
    units = widest * sum(p.kind == "activation" for p in plan.points)
    head: Tensor = vanilla.model.get_output_embeddings().weight  # type: ignore[operator]
    logits = 4 * batch.n_scored * head.shape[0] * 4
    return length * units * len(plan.layers) * 4 + logits


def _chunk(
    plan: Plan,
    vanilla: Anatomy,
    unlearned: Anatomy,
    batch: TokenBatch,
    losses: Losses,
    rows: slice,
    shown: Any,
) -> None:
    todo = [r for r in range(len(plan)) if not losses.done(r, rows)]
    shown.update(len(plan) - len(todo))
    if not todo:
        return
    index = batch.scored_index()
    where = batch.where(plan.positions)
    known, acts = _vanilla_side(plan, vanilla, batch, index)
    n_rows = shared_rows(vanilla.model, unlearned.model)
    target = known[..., :n_rows].to(device_of(unlearned.model))
    width = index.shape[1]
    inputs = batch.inputs(device_of(unlearned.model))

    def mse() -> np.ndarray:
        logits = logits_at(unlearned.model, inputs, index)[..., :n_rows].to(target.device)
        return logit_mse(logits, target).cpu().numpy()

    losses.power[rows, :width] = logit_power(target).cpu().numpy()
    losses.baseline[rows, :width] = mse()
    check_base(vanilla, unlearned, batch, losses, rows)
    restorations = list(plan)
    for r in todo:
        shown.set_postfix_str(f"{restorations[r].setting.name} at {restorations[r].window.name}")
        with patched(unlearned.model, *_patches(restorations[r], vanilla, acts, where)):
            losses.restored[r, rows, :width] = computed(mse())
        shown.update()


def _vanilla_side(plan: Plan, vanilla: Anatomy, batch: TokenBatch, index: Tensor) -> tuple[Tensor, Recording | None]:
    """The vanilla logits at the scored positions, and the activations that the plan restores."""
    inputs = batch.inputs(device_of(vanilla.model))
    activations = tuple(p for p in plan.points if p.kind == "activation")
    if not activations:
        return logits_at(vanilla.model, inputs, index), None
    with record(vanilla.model, Setting(activations), layers=plan.layers) as acts:
        logits = logits_at(vanilla.model, inputs, index)
    return logits, acts


def _patches(restoration: Restoration, vanilla: Anatomy, acts: Recording | None, where: Tensor | None) -> list[Patch]:
    layers = restoration.window.layers
    return [
        point.at(*layers).set(acts, where=where) if point.kind == "activation" else point.at(*layers).set(vanilla.model)
        for point in restoration.setting.points
    ]
