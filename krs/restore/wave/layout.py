"""How a batch's tokens lie in the tensors of a pass: packed as a tree, or a padded row a prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from krs.prompts import Ids, TokenBatch
from krs.restore.wave.packing import Packed, pack


@dataclass(frozen=True)
class Layout:
    """Token positions of one row of a pass, `[sequence, pos]`.

    Attributes:
        inputs: what a model's decoder is called with.
        scored: for each scored token of the batch, prompt after prompt, its place among `sequence * pos`.
        where: which positions activations are restored at, `None` for all.
        tree: how the tokens are packed; `None` for padded rows.
    """

    inputs: dict[str, Int[Tensor, "sequence pos"]]
    scored: Int[Tensor, " token"]
    where: Bool[Tensor, "sequence pos"] | None
    tree: Packed | None

    @property
    def shape(self) -> tuple[int, int]:
        """Sequences and positions of a row."""
        sequences, length = self.inputs["input_ids"].shape
        return sequences, length

    @property
    def n_tokens(self) -> int:
        """Tokens of a row, padding included."""
        return self.inputs["input_ids"].numel()

    def repeated(self, rows: int) -> dict[str, Any]:
        """The inputs of so many rows, one after the other."""
        return {name: value.repeat(rows, 1) for name, value in self.inputs.items()}


def packed(batch: TokenBatch, positions: str | Ids | None) -> Layout:
    """One sequence that holds every distinct token of the batch once."""
    where = batch.where(positions)
    tree = pack(batch, None if where is None else where.tolist())
    ids, depths = torch.tensor([tree.ids]), torch.tensor([tree.depths])
    scored = [place[p] for place, wanted in zip(tree.places, batch.scored, strict=True) for p in wanted]
    marked = None
    if where is not None:
        marked = torch.zeros(1, len(tree), dtype=torch.bool)
        for row, place in zip(where.tolist(), tree.places, strict=True):
            for p, at in enumerate(place):
                marked[0, at] = row[p]
    return Layout({"input_ids": ids, "position_ids": depths}, torch.tensor(scored), marked, tree)


def padded(batch: TokenBatch, positions: str | Ids | None) -> Layout:
    """A row a prompt, padded on the right."""
    inputs = batch.inputs()
    length = inputs["input_ids"].shape[1]
    scored = [i * length + p for i, wanted in enumerate(batch.scored) for p in wanted]
    return Layout(inputs, torch.tensor(scored), batch.where(positions), None)


def alone(batch: TokenBatch, prompt: int) -> Layout:
    """One prompt by itself, as anyone would call a model: what other layouts are checked against."""
    return padded(batch.rows(prompt, prompt + 1), None)


def repeated(value: Tensor, rows: int) -> Tensor:
    """One row's values for several rows; a view where one sequence makes a row."""
    if rows == 1:
        return value
    if value.shape[0] == 1:
        return value.expand(rows, *value.shape[1:])
    return value.unsqueeze(0).expand(rows, *value.shape).reshape(rows * value.shape[0], *value.shape[1:])
