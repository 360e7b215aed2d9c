"""How far two sets of logits are apart, from the logits themselves or from what the heads get."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from krs.models.devices import has_float64, summable

_ROWS = 256
"""Vocabulary entries summed in fp32 before float64 takes over."""


def logit_mse(a: Float[Tensor, "*token vocab"], b: Float[Tensor, "*token vocab"]) -> Float[Tensor, "*token"]:
    """Mean over the vocabulary of the squared difference (the MSE of Eq. 3), in float64 whatever the models' dtype.

    Differences are taken in fp32 or better and summed in float64, so that nearly equal logits keep their
    difference; on the host where the device has no float64.

    >>> logit_mse(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0]))
    tensor(2., dtype=torch.float64)
    """
    difference = a.to(torch.promote_types(a.dtype, torch.float32)) - b.to(torch.promote_types(b.dtype, torch.float32))
    return summable(difference.square_()).mean(dim=-1, dtype=torch.float64)


def logit_power(a: Float[Tensor, "*token vocab"]) -> Float[Tensor, "*token"]:
    """Mean over the vocabulary of the squared logits: the scale against which a difference is nothing."""
    return logit_mse(a, torch.zeros((), dtype=a.dtype, device=a.device).expand_as(a))


class HeadDistance:
    """The exact mean squared logit difference of two linear heads, without any logits.

    With `h'` and `h` the states that the heads get, the difference of the logits is `W' h' - W h = W' e + D h`, where
    `e = h' - h` and `D = W' - W`. Its mean square is `(eᵀ A e + 2 eᵀ B h + hᵀ C h) / V` with `A = W'ᵀW'`, `B = W'ᵀD`,
    and `C = DᵀD`, each `[d, d]`: one pass over the heads, then `V / d` times less work a token than logits take.
    Both differences are taken first, so nothing cancels when the models are nearly equal. Products of a few hundred
    vocabulary entries are summed in fp32 on a CPU (float64 elsewhere), everything else in float64. Where the heads'
    device has no float64, all of it happens on the host.

    >>> from torch.nn.functional import linear
    >>> ours, theirs, h1, h0 = torch.randn(50, 4), torch.randn(50, 4), torch.randn(3, 4), torch.randn(3, 4)
    >>> distance = HeadDistance(ours, theirs)
    >>> torch.allclose(distance.mse(h1, h0).float(), logit_mse(linear(h1, ours), linear(h0, theirs)).float())
    True

    Args:
        ours: weight `[vocab, d]` of the head that gets `h'` (the unlearned model's).
        theirs: weight of the head that gets `h` (the vanilla model's).
        our_bias: bias `[vocab]`, if the head has one.
        their_bias: likewise.
        our_scale: factor on the logits (Cohere, Granite).
        their_scale: likewise.
    """

    def __init__(
        self,
        ours: Float[Tensor, "vocab d"],
        theirs: Float[Tensor, "vocab d"],
        our_bias: Float[Tensor, " vocab"] | None = None,
        their_bias: Float[Tensor, " vocab"] | None = None,
        our_scale: float = 1.0,
        their_scale: float = 1.0,
    ) -> None:
        self.vocabulary, width = ours.shape
        self.our_scale, self.their_scale = our_scale, their_scale
        d = width + (our_bias is not None or their_bias is not None)
        self._bias = d > width
        # For widths that give the scales: bias is scaled with the logits, so it rides in the last column.
        at = ours.device if has_float64(ours.device) else torch.device("cpu")
        self.a, self.b, self.c = (torch.zeros(d, d, dtype=torch.float64, device=at) for _ in range(3))
        working = torch.promote_types(ours.dtype, torch.float32 if at.type == "cpu" else torch.float64)
        same = theirs is ours and their_bias is our_bias and our_scale == their_scale
        for start in range(0, self.vocabulary, _ROWS):
            part = slice(start, start + _ROWS)
            w = _columns(ours, our_bias, part, self._bias).to(at).to(working)
            if same:
                self.a += w.T @ w
                continue
            change = w - _columns(theirs, their_bias, part, self._bias).to(at).to(working)
            self.a += w.T @ w
            if at.type != "cpu" or change.any():  # asking an accelerator costs more than the two products
                self.b += w.T @ change
                self.c += change.T @ change

    def mse(self, ours: Float[Tensor, "*row token d"], theirs: Float[Tensor, "token d"]) -> Float[Tensor, "*row token"]:
        """Mean over the vocabulary of the squared logit difference, float64."""
        return self.to(theirs)(ours)

    def to(self, theirs: Float[Tensor, "token d"]) -> Callable[[Tensor], Tensor]:
        """The same from one `theirs`, a function of `ours`: what depends on `theirs` alone is computed once."""
        h = self._states(theirs, self.their_scale)
        across, own = 2 * (h @ self.b.T), (h * (h @ self.c)).sum(-1)

        def distance(ours: Tensor) -> Tensor:
            e = self._states(ours, self.our_scale) - h
            return ((e * (e @ self.a + across)).sum(-1) + own).clamp(min=0) / self.vocabulary

        return distance

    def power(self, theirs: Float[Tensor, "token d"]) -> Float[Tensor, " token"]:
        """Mean over the vocabulary of the squared logits of the second head, float64."""
        h = self._states(theirs, self.their_scale)
        gram = self.a - self.b - self.b.T + self.c
        return (h * (h @ gram)).sum(-1).clamp(min=0) / self.vocabulary

    def _states(self, states: Tensor, scale: float) -> Tensor:
        wide = states.to(self.a.device).to(self.a.dtype)
        if self._bias:
            wide = torch.cat([wide, wide.new_ones(*wide.shape[:-1], 1)], dim=-1)
        return wide * scale


def _columns(weight: Tensor, bias: Tensor | None, part: slice, with_bias: bool) -> Tensor:
    """Some rows of a head, its bias as one more column."""
    rows = weight[part]
    if not with_bias:
        return rows
    column = rows.new_zeros(len(rows)) if bias is None else bias[part].to(rows)
    return torch.cat([rows, column[:, None]], dim=-1)
