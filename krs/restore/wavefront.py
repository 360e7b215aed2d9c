"""The wavefront engine: every restoration of a plan in one pass through the layers, the two models in lockstep.

At each layer there is a row for the base run of the unlearned model and one for each different history of restorations
so far (`wave.schedule`). The vanilla model is run one layer, its activations at the plan's points are put into the
rows that restore them there, and everything moves on to the next layer: each weight of each model is touched once,
and nothing is kept of a layer but its rows.

What is restored as a constant is not computed: a restored attention output skips the attention, restored
coefficients skip the MLP, both together leave an addition. In the first layer of a window everything before the
restored point is still the base's. Prompts share what they begin with (`wave.packing`).

The pass checks itself as it goes: one prompt runs beside it through the models as anyone would call them, and at each
layer the constants that stand in for modules have to reproduce the base row. Where that fails, the pass stops with
`NotExactError`, and the plain engine takes over.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from krs.generation.forward import device_of
from krs.hooks.anatomy import Anatomy
from krs.hooks.idle import acting_hooks
from krs.hooks.rope import following, start_afresh
from krs.prompts import TokenBatch
from krs.restore.finite import check_base
from krs.restore.losses import Losses, computed
from krs.restore.plan import Plan
from krs.restore.wave.allocator import freed_memory_kept
from krs.restore.wave.answers import is_offloaded
from krs.restore.wave.attention import CannotPackError, can_pack
from krs.restore.wave.heads import Heads
from krs.restore.wave.lane import NotExactError
from krs.restore.wave.layout import packed, padded
from krs.restore.wave.passes import Counted, Pass, per_device
from krs.restore.wave.schedule import schedule

NAME = "wavefront"

_GROUP_TOKENS = {"cpu": 4096, "cuda": 65536}
"""Tokens of the prompts that one pass takes; a pass is also what an interrupted sweep goes on from."""


def run(
    plan: Plan,
    vanilla: Anatomy,
    unlearned: Anatomy,
    batch: TokenBatch,
    losses: Losses,
    budget: int,
    shown: Any,
) -> None:
    """Fill `losses`, a group of prompts at a time, in one pass through the layers a group.

    What `losses` holds already is not computed again. `shown` is a progress bar of `steps(…)` steps. Raises
    `NotExactError`, having left the losses of unfinished groups as they were, where the pass would not be exact.
    """
    refuse(vanilla, unlearned, batch)
    heads: Heads | None = None
    total = _layer_runs(plan, range(len(plan)))
    for rows in groups(plan, vanilla, batch, budget):
        todo = [r for r in range(len(plan)) if not losses.done(r, rows)]
        shown.update(total - _layer_runs(plan, todo))
        if not todo:
            continue
        with torch.no_grad(), freed_memory_kept():
            heads = heads or Heads(unlearned, vanilla)
            part = batch.rows(rows.start, rows.stop)
            _group(plan, todo, vanilla, unlearned, part, losses, rows, heads, budget, shown)


def steps(plan: Plan, vanilla: Anatomy, batch: TokenBatch, budget: int) -> int:
    """How many times `run` will update its progress bar: once a row and layer."""
    return _layer_runs(plan, range(len(plan))) * sum(1 for _ in groups(plan, vanilla, batch, budget))


def refuse(vanilla: Anatomy, unlearned: Anatomy, batch: TokenBatch) -> None:
    """Raise `NotExactError` for models that are not what their modules say: somebody else's hooks act in them.

    Also for models in which the rows of a forward act on each other, other than by how long they are: rows of one
    prompt are all of one length.
    """
    if batch.alone and not (following(vanilla.model) or following(unlearned.model)):
        raise NotExactError("what a row gives depends on the other rows that are computed with it")
    for body in (vanilla, unlearned):
        for where in acting_hooks(body.model):
            raise NotExactError(f"there are hooks on {where}")


def groups(plan: Plan, vanilla: Anatomy, batch: TokenBatch, budget: int) -> Iterator[slice]:
    """Prompts in runs whose rows take up to half of the budget (the layers' own tensors have the other half).

    At least one prompt a run. Of an offloaded model's prompts as many as fit are in a run, for each run reads all its
    weights once.
    """
    rows = max(map(len, schedule(plan)[0]))
    longest = max(map(len, batch.tokens))
    tokens = budget // 2 // (rows * _bytes_per_state(vanilla))
    if not is_offloaded(vanilla.model):
        tokens = min(tokens, per_device(_GROUP_TOKENS, device_of(vanilla.model)))
    n = len(batch) if batch.alone else math.ceil(len(batch) / max(1, min(len(batch), tokens // longest)))
    for part in np.array_split(np.arange(len(batch)), n):
        yield slice(int(part[0]), int(part[-1]) + 1)


def _bytes_per_state(body: Anatomy) -> int:
    """Bytes of one token's hidden state."""
    config: Any = body.model.config
    dtype = next(p.dtype for p in body.layers.parameters() if p.is_floating_point())
    return int(config.hidden_size) * dtype.itemsize


def _layer_runs(plan: Plan, todo: Sequence[int]) -> int:
    restorations = list(plan)
    return sum(map(len, schedule(plan, [restorations[r] for r in todo])[0])) if todo else 0


def _group(
    plan: Plan,
    todo: Sequence[int],
    vanilla: Anatomy,
    unlearned: Anatomy,
    batch: TokenBatch,
    losses: Losses,
    rows: slice,
    heads: Heads,
    budget: int,
    shown: Any,
) -> None:
    """One pass for some prompts: packed if the models can attend so, padded otherwise."""
    start_afresh(vanilla.model)
    start_afresh(unlearned.model)
    restorations = list(plan)
    rows_by_layer, last = schedule(plan, [restorations[r] for r in todo])
    layouts = [packed, padded] if can_pack(vanilla.layers[0]) and can_pack(unlearned.layers[0]) else [padded]
    for lay_out in layouts:
        counted = Counted(shown)
        try:
            made = Pass(vanilla, unlearned, batch, lay_out(batch, plan.positions), rows_by_layer, budget, counted)
            base, power, restored = made.losses(heads)
            break
        except (CannotPackError, NotExactError):
            shown.update(-counted.n)
            if lay_out is layouts[-1]:
                raise
    mask, width = batch.mask, batch.n_scored
    losses.power[rows, :width][mask] = power
    losses.baseline[rows, :width][mask] = base
    if not check_base(vanilla, unlearned, batch, losses, rows):
        raise NotExactError("its base row is NaN or infinite where the model by itself is not")
    for r, row in zip(todo, last, strict=True):
        losses.restored[r, rows, :width][mask] = computed(base if row == 0 else restored[row - 1])
