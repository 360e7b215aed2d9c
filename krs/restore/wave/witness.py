"""One prompt beside a pass, run through a model as anyone would call it: the pass has to agree with it."""

from __future__ import annotations

import torch
from torch import Tensor

from krs.prompts import TokenBatch
from krs.restore.wave.lane import Lane, NotExactError
from krs.restore.wave.layout import alone

_TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""How far a token's state may be, relative to its size, from that of the same token in the prompt run alone."""


class Witness:
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
        if distance(flat[self.places.to(flat.device)], mine.to(flat.device)) > tolerance(mine):
            raise NotExactError(f"states after layer {layer} are not those of a prompt by itself")


def distance(a: Tensor, b: Tensor) -> float:
    """The largest difference of two states of a token, relative to their size."""
    a, b = a.float(), b.float()
    return ((a - b).norm(dim=-1) / b.norm(dim=-1).clamp(min=1e-6)).max().item()


def tolerance(states: Tensor) -> float:
    """How large a `distance` may be and still be rounding, in the states' dtype."""
    return _TOLERANCE.get(states.dtype, 1e-4)
