"""The wavefront engine: every restoration of a plan in one pass through the layers, the two models in lockstep.

At each layer there is a row for the base run of the unlearned model and one for each different history of restorations
so far (`wave.schedule`). The vanilla model is run one layer, its activations at the plan's points are put into the
rows that restore them there, and everything moves on to the next layer: each weight of each model is touched once,
and nothing is kept of a layer but its rows.

What is restored as a constant is not computed: a restored attention output skips the attention, restored
coefficients skip the MLP, both together leave an addition. In the first layer of a window everything before the restored
point is still the base's. Prompts share what they begin with (`wave.packing`).

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
from torch import Tensor, nn

from krs.hooks.anatomy import Anatomy
from krs.hooks.points import ActivationPoint, Point
from krs.prompts import TokenBatch
from krs.restore.losses import Losses
from krs.restore.plan import Plan
from krs.restore.wave.answers import Answer, answering, around, held
from krs.restore.wave.attention import CannotPackError, can_pack
from krs.restore.wave.heads import Heads
from krs.restore.wave.lane import Lane, NotExactError
from krs.restore.wave.layout import Layout, alone, packed, padded
from krs.restore.wave.parts import Part, blended, parts_of, scored_only, swapped, watched
from krs.restore.wave.schedule import Points, Row, schedule

NAME = "wavefront"

_TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""How far a token's state may be, relative to its size, from that of the same token in the prompt run alone."""

_CHUNK_TOKENS = {"cpu": 1600, "cuda": 16384}
"""Tokens a layer is called with at once. On a CPU more would not fit into its cache between two operations."""


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
    for rows in groups(plan, vanilla, batch, budget):
        todo = [r for r in range(len(plan)) if not losses.done(r, rows)]
        total = _layer_runs(plan, range(len(plan)))
        shown.update(total - _layer_runs(plan, todo))
        if not todo:
            continue
        with torch.no_grad():
            heads = heads or Heads(unlearned, vanilla)
            part = batch.rows(rows.start, rows.stop)
            _group(plan, todo, vanilla, unlearned, part, losses, rows, heads, shown)


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
    """Prompts in runs whose rows fit into the budget; at least one prompt a run."""
    rows = max(map(len, schedule(plan)[0]))
    config: Any = vanilla.model.config
    weight = next(p for p in vanilla.layers.parameters() if p.is_floating_point())
    each = max(map(len, batch.tokens)) * rows * config.hidden_size * weight.element_size()
    size = max(1, min(len(batch), budget // each))
    n = math.ceil(len(batch) / size)
    for part in np.array_split(np.arange(len(batch)), n):
        yield slice(int(part[0]), int(part[-1]) + 1)


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
    shown: Any,
) -> None:
    """One pass for some prompts: packed if the models can attend so, padded otherwise."""
    restorations = list(plan)
    rows_by_layer, last = schedule(plan, [restorations[r] for r in todo])
    layouts = [packed, padded] if can_pack(vanilla.layers[0]) and can_pack(unlearned.layers[0]) else [padded]
    for lay_out in layouts:
        try:
            made = _Pass(vanilla, unlearned, batch, lay_out(batch, plan.positions), rows_by_layer, shown)
            base, power, restored = made.losses(heads)
            break
        except (CannotPackError, NotExactError):
            if lay_out is layouts[-1]:
                raise
    mask, width = batch.mask, batch.n_scored
    losses.power[rows, :width][mask] = power
    losses.baseline[rows, :width][mask] = base
    for r, row in zip(todo, last, strict=True):
        losses.restored[r, rows, :width][mask] = base if row == 0 else restored[row - 1]


class _Pass:
    """One pass of a batch through both models, layer by layer."""

    def __init__(
        self,
        vanilla: Anatomy,
        unlearned: Anatomy,
        batch: TokenBatch,
        layout: Layout,
        rows_by_layer: Sequence[Sequence[Row]],
        shown: Any,
    ) -> None:
        self.layout, self.rows_by_layer, self.shown = layout, rows_by_layer, shown
        self.vanilla, self.unlearned = Lane(vanilla, layout), Lane(unlearned, layout)
        self.points = list(dict.fromkeys(p for step in rows_by_layer for row in step for p in row.points))
        longest = max(range(len(batch)), key=lambda i: len(batch.tokens[i]))
        self.witness = _Witness(self.vanilla, batch, longest), _Witness(self.unlearned, batch, longest)
        self.slots: list[int] = [0]
        self.stack = self.unlearned.states.new_empty(0)
        self.at_once = 1
        self.scored = torch.unique(layout.scored)

    def losses(self, heads: Heads) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Baseline, power and `[row, token]` of all rows but the base's, in the order of the last layer's rows."""
        base = self.unlearned.states
        n_slots = max(map(len, self.rows_by_layer)) - 1
        self.stack = base.new_empty(n_slots, *base.shape)
        per_chunk = _CHUNK_TOKENS.get(base.device.type, _CHUNK_TOKENS["cuda"])
        self.at_once = max(1, round(per_chunk / self.layout.n_tokens))
        for layer, step in enumerate(self.rows_by_layer):
            self._layer(layer, step)
        theirs = self._at_scored(self.vanilla, self.vanilla.states[None])[0]
        base_loss = heads.mse(self._at_scored(self.unlearned, self.unlearned.states[None])[0], theirs)
        found = []
        for slot in self.slots[1:]:
            found.append(heads.mse(self._at_scored(self.unlearned, self.stack[slot][None])[0], theirs))
        restored = torch.stack(found).numpy() if found else np.zeros((0, len(theirs)))
        return base_loss.numpy(), heads.power(theirs).numpy(), restored

    def _at_scored(self, lane: Lane, states: Tensor) -> Tensor:
        flat = states.reshape(len(states), self.layout.n_tokens, -1)
        return lane.final(flat[:, self.layout.scored.to(flat.device)])

    def _layer(self, layer: int, step: Sequence[Row]) -> None:
        points = list(dict.fromkeys(p for row in step for p in row.points))
        ours, theirs = self.unlearned.body, self.vanilla.body
        with held(theirs.layers[layer]), held(ours.layers[layer]):
            before = self.unlearned.states
            known = self._run_watched(self.vanilla, layer, points)
            own = self._run_watched(self.unlearned, layer, points)
            for witness in self.witness:
                witness.step(layer)
            pieces = _Pieces(self, layer, own, known, before)
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
        free = iter(sorted(set(range(len(self.stack))) - {s for s in self.slots[1:]}))
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

    def _advance(self, pieces: _Pieces, points: Points, slots: list[int]) -> None:
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


class _Pieces:
    """What rows of one layer are made of: the base row's values, the vanilla model's, and what follows from both."""

    def __init__(
        self, owner: _Pass, layer: int, own: dict[str, Part], known: dict[str, Part], before: Tensor
    ) -> None:
        self.owner, self.layer, self.own, self.known, self.before = owner, layer, own, known, before
        self.last = layer == owner.unlearned.body.n_layers - 1
        self._constants: dict[tuple[str, Points], Tensor] = {}
        self._check_replay()

    def answers(self, points: Points) -> dict[nn.Module, Answer]:
        """What answers for what, in rows that restore `points`."""
        answers = self._swaps(points)
        where = self.owner.layout.where
        for point in self._activations(points):
            part = self.own[point.role]
            if where is None:
                answers[part.target] = part.answer(self._constant(point, points))
                continue
            value = self.known[point.role].inputs if point.side == "input" else self.known[point.role].output
            assert value is not None
            mixed = blended(value.to(self.before.device), where, point)
            answers[part.module] = around(mixed, answers.get(part.module))
        return answers | self._trimming(answers)

    def started(self, points: Points) -> Tensor:
        """The row that leaves this layer when it is the first one with something restored."""
        answers = self.answers(points)
        touched = self._touched(points)
        attention, mlp = self.own.get("attn_out_proj"), self.own.get("mlp_out_proj")
        same = attention is not None and not any(_within(path, attention) for path in touched)
        if same:
            assert attention is not None and attention.output is not None
            answers[attention.target] = attention.answer(attention.output)
            only = {path for path in touched if mlp is not None and _within(path, mlp)} <= {mlp.path if mlp else ""}
            if only and mlp is not None and not any(p.role == "mlp_out_proj" for p in self._activations(points)):
                with answering(self._swaps(points)):
                    answers[mlp.target] = mlp.answer(mlp.module(mlp.inputs))
        with answering(answers):
            return self.owner.unlearned.call(self.layer, self.before)

    def addition(self, points: Points) -> Tensor | None:
        """What a layer adds to any row when both its attention and its MLP are constants; `None` when they are not."""
        targets = {self.own[p.role].target for p in self._activations(points)}
        blocks = {part.block for role, part in self.own.items() if role in ("attn_out_proj", "mlp_out_proj")}
        if self.owner.layout.where is not None or None in blocks or len(blocks) < 2 or not blocks <= targets:
            return None
        key = ("", points)
        if key not in self._constants:
            with answering(self.answers(points)):
                call = self.owner.unlearned.call
                self._constants[key] = call(self.layer, torch.zeros_like(self.before))
                there = call(self.layer, self.before)
            if _distance(self.before + self._constants[key], there) > _tolerance(there):
                raise NotExactError(f"layer {self.layer} is no sum of its input, its attention and its MLP")
        return self._constants[key]

    def _swaps(self, points: Points) -> dict[nn.Module, Answer]:
        """The vanilla weights of the weight points among `points`."""
        ours, theirs = self.owner.unlearned.body, self.owner.vanilla.body
        return {
            mine: swapped(mine, other)
            for point in points
            if point.kind == "weight"
            for mine, other in zip(ours.modules(point, self.layer), theirs.modules(point, self.layer), strict=True)
        }

    def _constant(self, point: ActivationPoint, points: Points) -> Tensor:
        """What comes out of a point's module when the vanilla value is put there, one row."""
        part, theirs = self.own[point.role], self.known[point.role]
        weights = frozenset(p for p in points if p.kind == "weight" and p.role == point.role)
        key = (point.name, weights)
        if key not in self._constants:
            assert theirs.inputs is not None and theirs.output is not None
            if point.side == "output":
                self._constants[key] = theirs.output.to(self.before.device)
            else:
                with answering(self._swaps(weights)):
                    self._constants[key] = part.module(theirs.inputs.to(self.before.device))
        return self._constants[key]

    def _trimming(self, answers: dict[nn.Module, Answer]) -> dict[nn.Module, Answer]:
        """In the last layer: only scored positions go through the MLP and out of the attention."""
        if not self.last:
            return {}
        places = self.owner.scored.to(self.before.device)
        some = scored_only(places, self.owner.layout)
        mlp, attention = self.own.get("mlp_out_proj"), self.own.get("attn_out_proj")
        found = [mlp.block] if mlp is not None and mlp.block is not None else []
        found += [attention.module] if attention is not None and attention.block is not None else []
        return {m: some for m in found if m not in answers and not any(k in answers for k in m.modules())}

    def _activations(self, points: Points) -> list[ActivationPoint]:
        """The activation points among `points`; those at a module's output last, for they have the last word."""
        found = [p for p in points if isinstance(p, ActivationPoint)]
        return sorted(found, key=lambda p: p.side == "output")

    def _touched(self, points: Points) -> set[str]:
        family = self.owner.unlearned.body.family
        return {path for p in points for path in family.paths(p.role)}

    def _check_replay(self) -> None:
        """The base row's own constants in place of attention and MLP have to give the base row."""
        lane = self.owner.unlearned
        blocks = [part for part in self.own.values() if part.block is not None]
        values = {part.path: part.output.clone() for part in blocks if part.output is not None}
        versions = {path: value._version for path, value in values.items()}
        answers = {part.block: part.answer(values[part.path]) for part in blocks if part.block is not None}
        with answering(answers):
            again = lane.call(self.layer, self.before)
        for part in blocks:
            part.written = values[part.path]._version != versions[part.path]
        if _distance(again, lane.states) > _tolerance(again):
            raise NotExactError(f"layer {self.layer} uses more of its attention or its MLP than what they return")
        if self.last and (trim := self._trimming({})):
            with answering(trim):
                again = lane.call(self.layer, self.before)
            flat = [x.reshape(self.owner.layout.n_tokens, -1)[self.owner.scored.to(x.device)] for x in (again, lane.states)]
            if _distance(*flat) > _tolerance(again):
                raise NotExactError(f"layer {self.layer} does not treat each position by itself after attention")


class _Witness:
    """One prompt beside the pass, run through the model as anyone would call it."""

    def __init__(self, lane: Lane, batch: TokenBatch, prompt: int) -> None:
        self.lane = lane
        self.own = Lane(lane.body, alone(batch, prompt))
        n = max(batch.scored[prompt]) + 1
        length = lane.layout.shape[1]
        tree = lane.layout.tree
        self.places = torch.tensor(tree.places[prompt] if tree else range(prompt * length, prompt * length + n))[:n]

    def step(self, layer: int) -> None:
        """One layer on; raises `NotExactError` where the lane's states of the same tokens are others."""
        self.own.states = self.own.call(layer, self.own.states)
        flat = self.lane.states.reshape(self.lane.layout.n_tokens, -1)
        mine = self.own.states[0, : len(self.places)]
        if _distance(flat[self.places.to(flat.device)], mine.to(flat.device)) > _tolerance(mine):
            raise NotExactError(f"states after layer {layer} are not those of a prompt by itself")


def _groups(step: Sequence[Row]) -> dict[Points, list[int]]:
    """Rows by what is restored in them, the base and those that leave it left out."""
    found: dict[Points, list[int]] = {}
    for i, row in enumerate(step):
        if row.parent != 0:
            found.setdefault(row.points, []).append(i)
    return found


def _within(path: str, part: Part) -> bool:
    return path == part.path or (bool(part.inside) and path.startswith(f"{part.inside}."))


def _as_slice(numbers: list[int]) -> slice | None:
    """Ascending numbers as a slice, which makes a view; `None` when they are not evenly spaced."""
    gaps = {b - a for a, b in zip(numbers, numbers[1:], strict=False)} or {1}
    return slice(numbers[0], numbers[-1] + 1, gaps.pop()) if len(gaps) == 1 else None


def _distance(a: Tensor, b: Tensor) -> float:
    """The largest difference of two states of a token, relative to their size."""
    a, b = a.float(), b.float()
    return ((a - b).norm(dim=-1) / b.norm(dim=-1).clamp(min=1e-6)).max().item()


def _tolerance(states: Tensor) -> float:
    return _TOLERANCE.get(states.dtype, 1e-4)


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
