"""What rounding the weights brings back: changes that are small against a quantisation step are rounded away.

Zhang et al. 2024 (arXiv 2410.16454) get much of what was unlearned back by quantising to 4 bits.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from krs.hooks.adapters import changeable_copy
from krs.hooks.anatomy import anatomy
from krs.hooks.components import component_of
from krs.instruments.case import Case
from krs.instruments.instrument import Instrument, register
from krs.instruments.logprobs import answer_tokens
from krs.instruments.reading import Reading

_LEFT = {"embedding", "unembedding", "norms"}


@dataclass(frozen=True)
class _Quantise(Instrument):
    """Weights of the layers are rounded to the nearest of `2**bits - 1` values, by groups of inputs.

    Attributes:
        group: so many inputs share a scale.
    """

    group: int = 64
    bits = 4
    unit, knows = "nats a token", "high"
    nulls = ("same", "never_knew")
    passes = 3.0

    def measure(self, case: Case) -> Reading:
        """How much NLL goes when the model is quantised; below 0 where rounding does harm."""
        batch = case.target.batch
        rounded = quantised(case.unlearned, self.bits, self.group)
        before = answer_tokens(case.unlearned, batch).nll()
        return self.reading(before - answer_tokens(rounded, batch, "the quantised").nll())


@register("quantise_4")
class Quantise4(_Quantise):
    """NLL that goes when weights are rounded to 4 bits."""

    bits = 4


@register("quantise_8")
class Quantise8(_Quantise):
    """NLL that goes when weights are rounded to 8 bits."""

    bits = 8


@torch.no_grad()
def quantised(model: nn.Module, bits: int, group: int = 64) -> nn.Module:
    """A copy whose matrices in the layers are rounded to the nearest of `2**bits - 1` values; norms and biases stay.

    Inputs of each output are rounded in groups that share a scale, the largest of their absolute values; the last
    group is shorter where the width is no multiple.
    """
    rounded = changeable_copy(model, "rounding the weights")
    body = anatomy(rounded)
    for name, parameter in rounded.named_parameters():
        if parameter.dim() >= 2 and parameter.is_floating_point() and component_of(body, name)[0] not in _LEFT:
            parameter.copy_(round_to_nearest(parameter, bits, group, inputs_first=_inputs_first(rounded, name)))
    return rounded


def round_to_nearest(weight: Tensor, bits: int, group: int, inputs_first: bool = False) -> Tensor:
    """A matrix rounded, `[out, in]` (or `[in, out]`), symmetrically around 0.

    >>> round_to_nearest(torch.tensor([[1.0, 0.4, -0.2, 0.04]]), bits=3, group=4)
    tensor([[ 1.0000,  0.3333, -0.3333,  0.0000]])
    """
    value = weight.float()
    value = value.transpose(-1, -2) if inputs_first else value
    levels = 2 ** (bits - 1) - 1
    parts = []
    for part in value.split(group, dim=-1):
        scale = part.abs().amax(dim=-1, keepdim=True) / levels
        parts.append((part / scale.clamp_min(torch.finfo(part.dtype).tiny)).round() * scale)
    found = torch.cat(parts, dim=-1)
    return (found.transpose(-1, -2) if inputs_first else found).to(weight.dtype)


def _inputs_first(model: nn.Module, name: str) -> bool:
    """GPT-2's `Conv1D` keeps its matrix as `[in, out]`."""
    return type(model.get_submodule(name.rpartition(".")[0])).__name__ == "Conv1D"
