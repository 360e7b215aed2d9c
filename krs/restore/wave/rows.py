"""The states of a pass's rows: in one stack, each in a place of its own, moved on a layer at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from krs.hooks.overrides import ForwardOverride, override_forward
from krs.restore.wave.layer import LayerInterventions
from krs.restore.wave.runner import LayerwiseRunner
from krs.restore.wave.schedule import Interventions, Row


class Rows:
    """The rows of a pass, by their numbers at the layer that they have come to; mutable: the caller moves them on.

    Row 0 is the base, which the runner has.

    Attributes:
        runner: the recipient on the batch.
        stack: `[slot, sequence, pos, d]`, the states of the others.
        slots: for each row its place in the stack; for row 0 a number without a meaning.
        at_once: how many rows a layer is called with; fewer once memory has run out.
    """

    def __init__(self, runner: LayerwiseRunner, most: int, at_once: int) -> None:
        self.runner, self.at_once = runner, at_once
        self.stack = runner.states.new_empty(most, *runner.states.shape)
        self.slots = [0]

    def of(self, row: int) -> Tensor:
        """The states of a row, `[sequence, pos, d]`."""
        return self.stack[self.slots[row]] if row else self.runner.states

    def copies(self, rows: Sequence[int]) -> Tensor:
        """The states of rows other than the base, `[row, sequence, pos, d]`; what is done to them changes none."""
        return self.stack[[self.slots[row] for row in rows]]

    def add(self, states: Tensor) -> None:
        """One more row, before the first layer."""
        slot = len(self.slots) - 1
        self.stack[slot] = states
        self.slots.append(slot)

    def renumber(self, before: Mapping[int, int]) -> None:
        """By its new number, which row one was before; the places of all others become free."""
        self.slots = [self.slots[before.get(row, 0)] for row in range(max(before, default=0) + 1)]

    def advance(self, here: LayerInterventions, step: Sequence[Row]) -> None:
        """Every row of a step through its layer, which the base is through already."""
        self.stack = self.stack.to(here.before.device)
        self._branch_off(step, here.before)
        with self.runner.attention():
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
        self.move(here.layer, self.stack, sorted(slots), here.overrides(interventions))

    def move(self, layer: int, stack: Tensor, slots: list[int], overrides: Mapping[nn.Module, ForwardOverride]) -> None:
        """Some rows of a stack one layer on, in place; the stack may be another than these rows' own."""
        done = 0
        while done < len(slots):
            chunk = slots[done : done + self.at_once]
            view = _as_slice(chunk)
            where: slice | list[int] = chunk if view is None else view
            try:
                with override_forward(overrides):
                    states = stack[where]
                    out = self.runner.call(layer, states.reshape(-1, *states.shape[2:]), len(chunk))
            except (MemoryError, RuntimeError) as error:
                if not _is_out_of_memory(error) or len(chunk) == 1:
                    raise
                self.at_once = max(1, len(chunk) // 2)
                torch.cuda.empty_cache()
                continue
            stack[where] = out.reshape(states.shape)
            done += len(chunk)


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


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
