"""One pass of some prompts through both models, layer by layer, with a row for each history of restorations."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from krs.hooks.anatomy import Anatomy
from krs.hooks.points import Point
from krs.prompts import TokenBatch
from krs.restore.wave.answers import answering, held
from krs.restore.wave.heads import Heads
from krs.restore.wave.lane import Lane, NotExactError
from krs.restore.wave.layout import Layout
from krs.restore.wave.parts import Part, parts_of, watched
from krs.restore.wave.pieces import Pieces
from krs.restore.wave.schedule import Points, Row
from krs.restore.wave.witness import Witness

_CHUNK_TOKENS = {"cpu": 3200, "cuda": 16384}
"""Tokens a layer is called with at once. On a CPU more would not fit into its cache between two operations."""


class Counted:
    """A progress bar that remembers how far it was moved."""

    def __init__(self, shown: Any) -> None:
        self.shown, self.n = shown, 0

    def update(self, n: int = 1) -> None:
        """Move it on."""
        self.n += n
        self.shown.update(n)


class Pass:
    """One pass of a batch through both models, layer by layer."""

    def __init__(
        self,
        vanilla: Anatomy,
        unlearned: Anatomy,
        batch: TokenBatch,
        layout: Layout,
        rows_by_layer: Sequence[Sequence[Row]],
        budget: int,
        shown: Counted,
    ) -> None:
        self.layout, self.rows_by_layer, self.shown = layout, rows_by_layer, shown
        longest = max(range(len(batch)), key=lambda i: len(batch.tokens[i]))
        (self.vanilla, self.unlearned), self.witness = zip(
            *(_with_witness(body, layout, batch, longest) for body in (vanilla, unlearned)), strict=True
        )
        self.slots: list[int] = [0]
        self.stack = self.unlearned.states.new_empty(0)
        self.at_once = self._rows_at_once(budget)

    def losses(self, heads: Heads) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Baseline, power and `[row, token]` of all rows but the base's, in the order of the last layer's rows."""
        base = self.unlearned.states
        n_slots = max(map(len, self.rows_by_layer)) - 1
        self.stack = base.new_empty(n_slots, *base.shape)
        for layer, step in enumerate(self.rows_by_layer):
            self._layer(layer, step)
        with heads.held(), held(self.vanilla.norm), held(self.unlearned.norm):
            return self._losses(heads)

    def _losses(self, heads: Heads) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        theirs = self._at_scored(self.vanilla, self.vanilla.states[None])[0]
        base_loss = heads.mse(self._at_scored(self.unlearned, self.unlearned.states[None])[0], theirs)
        found = []
        for slot in self.slots[1:]:
            found.append(heads.mse(self._at_scored(self.unlearned, self.stack[slot][None])[0], theirs))
        restored = torch.stack(found).cpu().numpy() if found else np.zeros((0, len(theirs)))
        return base_loss.cpu().numpy(), heads.power(theirs).cpu().numpy(), restored

    def _rows_at_once(self, budget: int) -> int:
        """How many rows a layer is called with: so many that its tensors stay small, under half of the budget too."""
        config: Any = self.unlearned.body.model.config
        widths = 6 * config.hidden_size + 4 * (getattr(config, "intermediate_size", None) or 4 * config.hidden_size)
        states = self.unlearned.states
        tokens = min(per_device(_CHUNK_TOKENS, states.device), budget // 2 // (widths * states.element_size()))
        return max(1, round(tokens / self.layout.n_tokens))

    def _at_scored(self, lane: Lane, states: Tensor) -> Tensor:
        flat = states.reshape(len(states), self.layout.n_tokens, -1)
        return lane.final(flat[:, self.layout.scored.to(flat.device)])

    def _layer(self, layer: int, step: Sequence[Row]) -> None:
        points = list(dict.fromkeys(p for row in step for p in row.points))
        ours, theirs = self.unlearned.body, self.vanilla.body
        with held(theirs.layers[layer]), held(ours.layers[layer]):
            self.unlearned.states = before = self.unlearned.states.to(_device(ours.layers[layer]))
            self.vanilla.states = self.vanilla.states.to(_device(theirs.layers[layer]))
            self.stack = self.stack.to(before.device)
            known = self._run_watched(self.vanilla, layer, points)
            own = self._run_watched(self.unlearned, layer, points)
            for witness in self.witness:
                witness.step(layer)
            pieces = Pieces(self.unlearned, self.vanilla, layer, own, known, before)
            self._branch_off(step, before)
            for restored, members in _groups(step).items():
                self._advance(pieces, restored, [self.slots[i] for i in members])
            for i in (i for i, row in enumerate(step) if row.parent == 0 and row.points):
                self.stack[self.slots[i]] = pieces.started(step[i].points)
                self.shown.update()
        self.shown.update()

    def _run_watched(self, lane: Lane, layer: int, points: Sequence[Point]) -> dict[str, Part]:
        """Move a lane one layer on, noting what passes at the points' modules."""
        parts = parts_of(lane.body, layer, points)
        with answering(watched(lane.body, layer, parts.values())):
            lane.states = lane.call(layer, lane.states)
        for part in parts.values():
            if part.calls != 1:
                raise NotExactError(f"{part.path!r} in layer {layer} is called {part.calls} times a forward")
        return parts

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

    def _advance(self, pieces: Pieces, points: Points, slots: list[int]) -> None:
        """Move rows on in which `points` are restored in this layer, a chunk at a time."""
        if (step := pieces.addition(points)) is not None:
            for slot in slots:
                self.stack[slot] += step
            self.shown.update(len(slots))
            return
        answers = pieces.answers(points)
        done, slots = 0, sorted(slots)
        while done < len(slots):
            chunk = slots[done : done + self.at_once]
            try:
                with answering(answers):
                    self._move(pieces.layer, chunk)
            except (MemoryError, RuntimeError) as error:
                if not _is_out_of_memory(error) or len(chunk) == 1:
                    raise
                self.at_once = max(1, len(chunk) // 2)
                torch.cuda.empty_cache()
                continue
            done += len(chunk)
            self.shown.update(len(chunk))

    def _move(self, layer: int, chunk: list[int]) -> None:
        view = _as_slice(chunk)
        states = self.stack[view if view is not None else chunk]
        out = self.unlearned.call(layer, states.reshape(-1, *states.shape[2:]), len(chunk))
        self.stack[view if view is not None else chunk] = out.reshape(states.shape)


def _with_witness(body: Anatomy, layout: Layout, batch: TokenBatch, prompt: int) -> tuple[Lane, Witness]:
    with held(body.model.get_input_embeddings()):  # type: ignore[operator]
        lane = Lane(body, layout)
        return lane, Witness(lane, batch, prompt)


def per_device(sizes: dict[str, int], device: torch.device) -> int:
    """The entry for a kind of device; other accelerators than those listed count as `cuda`."""
    return sizes.get(device.type, sizes["cuda"])


def _groups(step: Sequence[Row]) -> dict[Points, list[int]]:
    """Rows by what is restored in them, the base and those that leave it left out."""
    found: dict[Points, list[int]] = {}
    for i, row in enumerate(step):
        if row.parent != 0:
            found.setdefault(row.points, []).append(i)
    return found


def _as_slice(numbers: list[int]) -> slice | None:
    """Ascending numbers as a slice, which makes a view; `None` when they are not evenly spaced."""
    gaps = {b - a for a, b in pairwise(numbers)} or {1}
    return slice(numbers[0], numbers[-1] + 1, gaps.pop()) if len(gaps) == 1 else None


def _device(layer: nn.Module) -> torch.device:
    """Where a layer's weights are while it is held."""
    return next(p.device for p in layer.parameters())


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
