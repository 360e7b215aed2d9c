"""A quantised layer without a library: what `bitsandbytes`, GPTQ and AWQ do, on any machine."""

from __future__ import annotations

import torch
from torch import nn


class Packed(nn.Module):
    """Four bits a weight, two weights a byte, in rows of one scale each: what a quantised layer looks like."""

    def __init__(self, linear: nn.Linear, rounds: bool = False) -> None:
        super().__init__()
        self.in_features, self.out_features, self.rounds = linear.in_features, linear.out_features, rounds
        weight = linear.weight.detach()
        self.register_buffer("scale", weight.abs().amax(1, keepdim=True) / 7)
        steps = (weight / self.scale).round().to(torch.int8) + 8
        self.weight = nn.Parameter((steps[:, ::2] * 16 + steps[:, 1::2]).to(torch.uint8), requires_grad=False)
        self.bias = linear.bias

    def unpacked(self) -> torch.Tensor:
        steps = torch.stack([self.weight // 16, self.weight % 16], -1).flatten(1)
        return (steps.to(self.scale.dtype) - 8) * self.scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.rounds:
            step = x.abs().amax(-1, keepdim=True) / 127
            x = (x / step).round() * step
        return nn.functional.linear(x, self.unpacked(), self.bias)
