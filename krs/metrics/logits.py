"""How far two sets of logits are apart."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def logit_mse(a: Float[Tensor, "*token vocab"], b: Float[Tensor, "*token vocab"]) -> Float[Tensor, "*token"]:
    """Mean over the vocabulary of the squared difference (the MSE of Eq. 3), in float64 whatever the models' dtype.

    Differences are taken in fp32 or better and summed in float64, so that nearly equal logits keep their
    difference.

    >>> logit_mse(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0]))
    tensor(2., dtype=torch.float64)
    """
    difference = a.to(torch.promote_types(a.dtype, torch.float32)) - b.to(torch.promote_types(b.dtype, torch.float32))
    return difference.square_().mean(dim=-1, dtype=torch.float64)


def logit_power(a: Float[Tensor, "*token vocab"]) -> Float[Tensor, "*token"]:
    """Mean over the vocabulary of the squared logits: the scale against which a difference is nothing."""
    return logit_mse(a, torch.zeros((), dtype=a.dtype, device=a.device).expand_as(a))
