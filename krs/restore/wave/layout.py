"""How a batch's tokens lie in the tensors of a pass: packed as a tree, or a padded row a prompt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from krs._typing import Positions
from krs.prompts import TokenBatch
from krs.restore.plan import for_prompts
from krs.restore.wave.packing import Packed, pack

_FEWER = 3
_EVERYWHERE: Mapping[Positions, Positions] = MappingProxyType({})


@dataclass(frozen=True)
class Layout:
    """Token positions of one row of a pass, `[sequence, pos]`.

    Attributes:
        inputs: what a model's decoder is called with.
        scored: for each scored token of the batch, prompt after prompt, its place among `sequence * pos`.
        where: for each way to say positions, which of them are meant, `None` for all.
        tree: how the tokens are packed; `None` for padded rows.
    """

    inputs: dict[str, Int[Tensor, "sequence pos"]]
    scored: Int[Tensor, " token"]
    where: Mapping[Positions, Bool[Tensor, "sequence pos"] | None]
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


def packed(batch: TokenBatch, positions: Mapping[Positions, Positions] = _EVERYWHERE) -> Layout:
    """One sequence that holds every distinct token of the batch once.

    A token that several prompts share is laid out once only where each of `positions` means it in all of them or in
    none.

    Args:
        batch: the prompts.
        positions: for each way to say positions, what it says of these prompts.
    """
    masks = {p: None if (mask := batch.where(said)) is None else mask.tolist() for p, said in positions.items()}
    marking = [mask for mask in masks.values() if mask is not None]
    marks = None
    if marking:
        marks = [[tuple(m[i][p] for m in marking) for p in range(len(t))] for i, t in enumerate(batch.tokens)]
    tree = pack(batch, marks)
    ids, depths = torch.tensor([tree.ids]), torch.tensor([tree.depths])
    scored = [place[p] for place, wanted in zip(tree.places, batch.scored, strict=True) for p in wanted]
    where: dict[Positions, Tensor | None] = {None: None}
    for name, listed in masks.items():
        if listed is not None:
            marked = torch.zeros(1, len(tree), dtype=torch.bool)
            for row, place in zip(listed, tree.places, strict=True):
                for p, at in enumerate(place):
                    marked[0, at] = row[p]
            where[name] = marked
    return Layout({"input_ids": ids, "position_ids": depths}, torch.tensor(scored), where, tree)


def padded(batch: TokenBatch, positions: Mapping[Positions, Positions] = _EVERYWHERE) -> Layout:
    """A row a prompt, padded on the right."""
    inputs = batch.inputs()
    length = inputs["input_ids"].shape[1]
    scored = [i * length + p for i, wanted in enumerate(batch.scored) for p in wanted]
    where = {None: None} | {p: batch.where(said) for p, said in positions.items()}
    return Layout(inputs, torch.tensor(scored), where, None)


def alone(batch: TokenBatch, prompt: int, positions: Mapping[Positions, Positions] = _EVERYWHERE) -> Layout:
    """One prompt by itself, as anyone would call a model: what other layouts are checked against."""
    own = slice(prompt, prompt + 1)
    return padded(batch.rows(prompt, prompt + 1), {p: for_prompts(said, own) for p, said in positions.items()})


def in_company(batch: TokenBatch, prompt: int) -> Layout:
    """The same prompt batched with a shorter beginning of itself: the same numbers, but for rounding."""
    one = batch.rows(prompt, prompt + 1)
    shorter = one.tokens[0][: max(1, len(one.tokens[0]) - _FEWER)]
    return padded(TokenBatch((one.tokens[0], shorter), one.prompt_lengths * 2, (one.scored[0], (0,))))


def repeated(value: Tensor, rows: int) -> Tensor:
    """One row's values for several rows; a view where one sequence makes a row."""
    if rows == 1:
        return value
    if value.shape[0] == 1:
        return value.expand(rows, *value.shape[1:])
    return value.unsqueeze(0).expand(rows, *value.shape).reshape(rows * value.shape[0], *value.shape[1:])
