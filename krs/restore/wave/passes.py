"""One pass of some prompts through both models, layer by layer, with a row for each history of restorations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from krs._typing import Positions
from krs.generation.forward import final_states
from krs.hooks.anatomy import Anatomy
from krs.hooks.ends import OtherTable
from krs.hooks.offload import materialised
from krs.hooks.overrides import override_forward
from krs.prompts import TokenBatch
from krs.restore.job import Job, Values
from krs.restore.plan import Restoration
from krs.restore.wave.heads import Scorer
from krs.restore.wave.layer import LayerInterventions
from krs.restore.wave.layout import Layout, alone
from krs.restore.wave.overrides import end_weight
from krs.restore.wave.reference import ReferenceRun, RestoredReference
from krs.restore.wave.runner import LayerwiseRunner
from krs.restore.wave.schedule import Interventions, Row

_CHUNK_TOKENS = {"cpu": 3200, "cuda": 16384}
"""Tokens a layer is called with at once. On a CPU more would not fit into its cache between two operations."""


class Pass:
    """One pass of a batch through both models, layer by layer."""

    def __init__(
        self,
        job: Job,
        batch: TokenBatch,
        layout: Layout,
        rows_by_layer: Sequence[Sequence[Row]],
        start: Sequence[Row],
        checked: Sequence[tuple[Restoration, int]],
        positions: Mapping[Positions, Positions],
    ) -> None:
        self.job, self.batch = job, batch
        self.layout, self.rows_by_layer, self.start = layout, rows_by_layer, start
        longest = max(range(len(batch)), key=lambda i: len(batch.tokens[i]))
        (self.donor, self.recipient), self.references = zip(
            *(_with_reference(body, layout, batch, longest) for body in (job.donor, job.recipient)), strict=True
        )
        donor, recipient = self.references
        where = dict(alone(batch, longest, positions).where)
        with self._tables():
            self.restored = [(RestoredReference(r, recipient, donor, where), row) for r, row in checked]
        self.slots: list[int] = [0]
        self.stack = self.recipient.states.new_empty(0)
        self.at_once = self._rows_at_once(job.budget)

    def run(self) -> Iterator[int]:
        """Go through the layers; yields how many rows each of them has moved on."""
        base = self.recipient.states
        self.stack = base.new_empty(max(map(len, (self.start, *self.rows_by_layer))) - 1, *base.shape)
        self._embed()
        for layer, step in enumerate(self.rows_by_layer):
            self._layer(layer, step)
            yield len(step)
        for reference, row in self.restored:
            state = self.stack[self.slots[row]] if row else self.recipient.states
            reference.compare(state.reshape(self.layout.n_tokens, -1))

    def _embed(self) -> None:
        """Give the rows that have another embedding what enters the first layer."""
        self.slots = [0, *range(len(self.start) - 1)]
        ours, theirs = self.recipient.body, self.donor.body
        with self._tables():
            for slot, row in zip(self.slots[1:], self.start[1:], strict=True):
                own, weight = end_weight(ours, theirs, row.interventions)
                table = OtherTable(own, weight)
                self.stack[slot] = self.recipient.starting_with(lambda _, ids, table=table: table(ids))

    @contextmanager
    def _tables(self) -> Iterator[None]:
        """Inside, both token embeddings are in memory, if they are needed."""
        with ExitStack() as stack:
            for body in (self.recipient.body, self.donor.body) if len(self.start) > 1 else ():
                stack.enter_context(materialised(body.model.get_input_embeddings()))
            yield

    def values(
        self, scorer: Scorer, rows: Sequence[int], heads: Sequence[Interventions]
    ) -> tuple[dict[str, Values], np.ndarray]:
        """Every measure of some rows of the last layer under some heads, and the reference's power; after `run`."""
        with ExitStack() as stack:
            stack.enter_context(scorer.materialised())
            for runner in (self.donor, self.recipient):
                stack.enter_context(materialised(runner.norm))
            recipient, donor = (self._at_scored(r, r.states) for r in (self.recipient, self.donor))
            if self.job.reference is self.job.donor:
                reference = donor
            elif self.job.reference is self.job.recipient:
                reference = recipient
            else:
                reference = final_states(self.job.reference.model, self.batch).to(donor.device)
            states = [partial(self._row, row) if row else lambda: recipient for row in rows]
            return scorer.values(states, heads, recipient, donor, reference, self.batch.target_ids)

    def _row(self, row: int) -> Tensor:
        """What the head gets of a row."""
        return self._at_scored(self.recipient, self.stack[self.slots[row]])

    def _rows_at_once(self, budget: int) -> int:
        """How many rows a layer is called with: so many that its tensors stay small, under half of the budget too."""
        config: Any = self.recipient.body.model.config
        widths = 6 * config.hidden_size + 4 * (getattr(config, "intermediate_size", None) or 4 * config.hidden_size)
        states = self.recipient.states
        tokens = min(per_device(_CHUNK_TOKENS, states.device), budget // 2 // (widths * states.element_size()))
        return max(1, round(tokens / self.layout.n_tokens))

    def _at_scored(self, runner: LayerwiseRunner, states: Tensor) -> Tensor:
        flat = states.reshape(self.layout.n_tokens, -1)
        return runner.final(flat[self.layout.scored.to(flat.device)])

    def _layer(self, layer: int, step: Sequence[Row]) -> None:
        wanted = list(dict.fromkeys(i for row in step for i in row.interventions))
        ours, theirs = self.recipient.body, self.donor.body
        with materialised(theirs.layers[layer]), materialised(ours.layers[layer]):
            self.recipient.states = before = self.recipient.states.to(_device(ours.layers[layer]))
            self.donor.states = self.donor.states.to(_device(theirs.layers[layer]))
            self.stack = self.stack.to(before.device)
            here = LayerInterventions(self.recipient, self.donor, layer, wanted)
            for reference in self.references:
                reference.step(layer)
            for restored, _ in self.restored:
                restored.step(layer)
            self._branch_off(step, before)
            for interventions, members in _groups(step).items():
                self._advance(here, interventions, [self.slots[i] for i in members])
            for i in (i for i, row in enumerate(step) if row.parent == 0 and row.interventions):
                self.stack[self.slots[i]] = here.started(step[i].interventions)

    def _branch_off(self, step: Sequence[Row], base: Tensor) -> None:
        """Give each row of this layer its place in the stack: its parent's, or a copy in a free one."""
        taken: set[int] = set()
        free = iter(sorted(set(range(len(self.stack))) - set(self.slots[1:])))
        slots = [0]
        for row in step[1:]:
            old = -1 if row.parent == 0 else self.slots[row.parent]
            if old >= 0 and old not in taken:
                slot = old
            else:
                slot = next(free)
                self.stack[slot] = base if old < 0 else self.stack[old]
            taken.add(slot)
            slots.append(slot)
        self.slots = slots

    def _advance(self, here: LayerInterventions, interventions: Interventions, slots: list[int]) -> None:
        """Move rows with these interventions in this layer on, a chunk at a time."""
        if (whole := here.whole_output(interventions)) is not None:
            for slot in slots:
                self.stack[slot] = whole
            return
        if (step := here.addition(interventions)) is not None:
            for slot in slots:
                self.stack[slot] += step
            return
        overrides = here.overrides(interventions)
        done, slots = 0, sorted(slots)
        while done < len(slots):
            chunk = slots[done : done + self.at_once]
            try:
                with override_forward(overrides):
                    self._move(here.layer, chunk)
            except (MemoryError, RuntimeError) as error:
                if not _is_out_of_memory(error) or len(chunk) == 1:
                    raise
                self.at_once = max(1, len(chunk) // 2)
                torch.cuda.empty_cache()
                continue
            done += len(chunk)

    def _move(self, layer: int, chunk: list[int]) -> None:
        view = _as_slice(chunk)
        states = self.stack[view if view is not None else chunk]
        out = self.recipient.call(layer, states.reshape(-1, *states.shape[2:]), len(chunk))
        self.stack[view if view is not None else chunk] = out.reshape(states.shape)


def _with_reference(
    body: Anatomy, layout: Layout, batch: TokenBatch, prompt: int
) -> tuple[LayerwiseRunner, ReferenceRun]:
    with materialised(body.model.get_input_embeddings()):  # type: ignore[operator]
        runner = LayerwiseRunner(body, layout)
        return runner, ReferenceRun(runner, batch, prompt)


def per_device(sizes: dict[str, int], device: torch.device) -> int:
    """The entry for a kind of device; other accelerators than those listed count as `cuda`."""
    return sizes.get(device.type, sizes["cuda"])


def _groups(step: Sequence[Row]) -> dict[Interventions, list[int]]:
    """Rows by their interventions, the base and those that leave it left out."""
    found: dict[Interventions, list[int]] = {}
    for i, row in enumerate(step):
        if row.parent != 0:
            found.setdefault(row.interventions, []).append(i)
    return found


def _as_slice(numbers: list[int]) -> slice | None:
    """Ascending numbers as a slice, which makes a view; `None` when they are not evenly spaced."""
    gaps = {b - a for a, b in pairwise(numbers)} or {1}
    return slice(numbers[0], numbers[-1] + 1, gaps.pop()) if len(gaps) == 1 else None


def _device(layer: nn.Module) -> torch.device:
    """Where a layer's weights are while it is materialised."""
    return next(p.device for p in layer.parameters())


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
