"""What rows of one layer are made of: the base row's values, the vanilla model's, and what follows from both."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from krs.hooks.points import ActivationPoint
from krs.restore.wave.answers import Answer, answering, around
from krs.restore.wave.lane import Lane, NotExactError
from krs.restore.wave.parts import Part, blended, scored_only, swapped
from krs.restore.wave.schedule import Points
from krs.restore.wave.witness import distance, tolerance


class Pieces:
    """One layer's answers, for rows with whatever is restored in them.

    Args:
        unlearned: the lane whose layer this is, already one layer on.
        vanilla: the other one.
        layer: its number.
        own: the base row's values at the points' modules.
        known: the vanilla model's.
        before: the base row as it entered the layer.

    Raises `NotExactError` when the base row's own values, answered, do not give the base row.
    """

    def __init__(
        self,
        unlearned: Lane,
        vanilla: Lane,
        layer: int,
        own: dict[str, Part],
        known: dict[str, Part],
        before: Tensor,
    ) -> None:
        self.unlearned, self.vanilla, self.layer = unlearned, vanilla, layer
        self.own, self.known, self.before = own, known, before
        self.last = layer == unlearned.body.n_layers - 1
        self.scored = torch.unique(unlearned.layout.scored).to(before.device)
        self.trim = True
        self._constants: dict[tuple[str, Points], Tensor] = {}
        self._check_replay()

    def answers(self, points: Points) -> dict[nn.Module, Answer]:
        """What answers for what, in rows that restore `points`."""
        answers = self._swaps(points)
        where = self.unlearned.layout.where
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
        """The row that leaves this layer when it is the first one with something restored.

        What comes before the first restored module is the base row's: the attention, if only the MLP's modules are
        touched, and the coefficients too, if only their value vectors are.
        """
        answers = self.answers(points)
        family = self.unlearned.body.family
        touched = {path for p in points for path in family.paths(p.role)}
        attention, mlp = self.own.get("attn_out_proj"), self.own.get("mlp_out_proj")
        if attention is not None and mlp is not None and all(_within(path, mlp) for path in touched):
            assert attention.output is not None
            answers[attention.target] = attention.answer(attention.output)
            if touched == {mlp.path} and not self._activations(points):
                with answering(self._swaps(points)):
                    answers[mlp.target] = mlp.answer(mlp.module(mlp.inputs))
        with answering(answers):
            return self.unlearned.call(self.layer, self.before)

    def addition(self, points: Points) -> Tensor | None:
        """What a layer adds to any row when both its attention and its MLP are constants; `None` when they are not."""
        targets = {self.own[p.role].target for p in self._activations(points)}
        blocks = {part.block for role, part in self.own.items() if role in ("attn_out_proj", "mlp_out_proj")}
        if self.unlearned.layout.where is not None or None in blocks or len(blocks) < 2 or not blocks <= targets:
            return None
        with answering(self.answers(points)):
            added = self.unlearned.call(self.layer, torch.zeros_like(self.before))
            there = self.unlearned.call(self.layer, self.before)
        return added if distance(self.before + added, there) < tolerance(there) else None

    def _swaps(self, points: Points) -> dict[nn.Module, Answer]:
        """The vanilla weights of the weight points among `points`."""
        ours, theirs = self.unlearned.body, self.vanilla.body
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
            assert theirs.inputs is not None
            assert theirs.output is not None
            if point.side == "output":
                self._constants[key] = theirs.output.to(self.before.device)
            else:
                with answering(self._swaps(weights)):
                    self._constants[key] = part.module(theirs.inputs.to(self.before.device))
        return self._constants[key]

    def _trimming(self, answers: dict[nn.Module, Answer]) -> dict[nn.Module, Answer]:
        """In the last layer: only scored positions go through the MLP and out of the attention."""
        if not self.last or not self.trim:
            return {}
        some = scored_only(self.scored, self.unlearned.layout)
        mlp, attention = self.own.get("mlp_out_proj"), self.own.get("attn_out_proj")
        found = [mlp.block] if mlp is not None and mlp.block is not None else []
        found += [attention.module] if attention is not None and attention.block is not None else []
        return {m: some for m in found if m not in answers and not any(k in answers for k in m.modules())}

    def _activations(self, points: Points) -> list[ActivationPoint]:
        """The activation points among `points`; those at a module's output last, for they have the last word."""
        found = [p for p in points if isinstance(p, ActivationPoint)]
        return sorted(found, key=lambda p: p.side == "output")

    def _check_replay(self) -> None:
        """The base row's own values in place of what computes them have to give the base row.

        Where skipping a whole block does not, only the point's module is skipped; where that does not either, the
        family says the wrong thing.
        """
        if not self._replays():
            for part in self.own.values():
                part.block = None
            if not self._replays():
                raise NotExactError(f"layer {self.layer} does more with its points than use what their modules return")
        lane = self.unlearned
        if self.last and (trim := self._trimming({})):
            with answering(trim):
                again = lane.call(self.layer, self.before)
            some, whole = (x.reshape(self.unlearned.layout.n_tokens, -1)[self.scored] for x in (again, lane.states))
            self.trim = distance(some, whole) < tolerance(again)

    def _replays(self) -> bool:
        lane, parts = self.unlearned, list(self.own.values())
        values = [part.output.clone() for part in parts if part.output is not None]
        versions = [value._version for value in values]
        answers = {part.target: part.answer(value) for part, value in zip(parts, values, strict=True)}
        with answering(answers):
            again = lane.call(self.layer, self.before)
        for part, value, version in zip(parts, values, versions, strict=True):
            part.written = value._version != version
        return distance(again, lane.states) < tolerance(again)


def _within(path: str, part: Part) -> bool:
    return path == part.path or (bool(part.inside) and path.startswith(f"{part.inside}."))
