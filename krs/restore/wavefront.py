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

from krs.generation.forward import device_of
from krs.hooks.anatomy import Anatomy
from krs.hooks.interventions import Intervention
from krs.hooks.offload import is_offloaded
from krs.prompts import TokenBatch
from krs.restore.losses import Losses
from krs.restore.plan import Plan, Restoration
from krs.restore.wave.allocator import freed_memory_kept
from krs.restore.wave.attention import CannotPackError, can_pack
from krs.restore.wave.heads import Heads
from krs.restore.wave.runner import NotExactError
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
    refuse(vanilla, unlearned)
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


def refuse(vanilla: Anatomy, unlearned: Anatomy) -> None:
    """Raise `NotExactError` for models that are not what their modules say: somebody else's hooks act in them."""
    for body in (vanilla, unlearned):
        for name, module in body.model.named_modules():
            if module._forward_hooks or module._forward_pre_hooks:
                raise NotExactError(f"there are hooks on {name or 'the model'!r}")


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
    n = math.ceil(len(batch) / max(1, min(len(batch), tokens // longest)))
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
    restorations = list(plan)
    rows_by_layer, last = schedule(plan, [restorations[r] for r in todo])
    positions = dict.fromkeys(restorations[r].positions for r in todo)
    checked = _one_of_each([restorations[r] for r in todo], last)
    layouts = [packed, padded] if can_pack(vanilla.layers[0]) and can_pack(unlearned.layers[0]) else [padded]
    for lay_out in layouts:
        counted = Counted(shown)
        try:
            made = Pass(vanilla, unlearned, batch, lay_out(batch, positions), rows_by_layer, checked, budget, counted)
            base, power, restored = made.losses(heads)
            break
        except (CannotPackError, NotExactError):
            shown.update(-counted.n)
            if lay_out is layouts[-1]:
                raise
    mask, width = batch.mask, batch.n_scored
    losses.power[rows, :width][mask] = power
    losses.baseline[rows, :width][mask] = base
    for r, row in zip(todo, last, strict=True):
        losses.restored[r, rows, :width][mask] = base if row == 0 else restored[row - 1]


def _one_of_each(restorations: Sequence[Restoration], rows: Sequence[int]) -> list[tuple[Restoration, int]]:
    """For each different set of interventions one restoration, one in the middle, and the row that it ends in."""
    found: dict[frozenset[Intervention], list[tuple[Restoration, int]]] = {}
    for restoration, row in zip(restorations, rows, strict=True):
        found.setdefault(restoration.interventions, []).append((restoration, row))
    return [same[len(same) // 2] for same in found.values()]
