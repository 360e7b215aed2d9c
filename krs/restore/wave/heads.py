"""Two heads, and how far apart their logits are: by inner products where these are enough, by logits otherwise."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from krs.generation.forward import device_of, head_logits
from krs.hooks.anatomy import Anatomy
from krs.hooks.linear import LinearMap
from krs.hooks.offload import materialised
from krs.hooks.overrides import override_forward
from krs.hooks.unwrap import core
from krs.hooks.weights import own_bias
from krs.metrics.logits import HeadDistance, logit_mse, logit_power
from krs.models.devices import has_float64
from krs.models.pair import shared_rows
from krs.restore.job import NotExactError

LOGIT_BYTES = 256 * 2**20
"""For logits and one thing made of them: of as many tokens as this allows, for larger products are faster."""

_FACTOR = 1e-5
"""Relative differences of logits' factors that are rounding, in fp32 or better."""


class Heads:
    """Distances between the logits of an unlearned and a vanilla model, from the states that their heads get.

    Attributes:
        linear: whether no logits are needed.

    Args:
        unlearned: whose head gets the states of rows.
        vanilla: whose head gets those of the reference.
        weight: `[vocab, d]` in place of the first head's own.
        once: for the states of one row only, whose logits cost less than the inner products of the heads.
    """

    def __init__(
        self, unlearned: Anatomy, vanilla: Anatomy, weight: Tensor | None = None, *, once: bool = False
    ) -> None:
        self.unlearned, self.vanilla, self.weight = unlearned, vanilla, weight
        self.distance: HeadDistance | None = None
        self.rows = n = shared_rows(vanilla.model, unlearned.model)
        if once:
            return
        our_scale, their_scale = _scale(unlearned), _scale(vanilla)
        ours, theirs = head_of(unlearned), head_of(vanilla)
        with materialised(ours), materialised(theirs):
            if our_scale is not None and their_scale is not None and _is_linear(ours) and _is_linear(theirs):
                own, bias = _parameters(ours)
                weight = own if self.weight is None else self.weight
                their_weight, their_bias = (x if x is None else x.to(weight.device) for x in _parameters(theirs))
                assert their_weight is not None
                if weight.shape[1] != their_weight.shape[1]:  # of two sizes: by logits
                    return
                bias, their_bias = (x if x is None else x[:n] for x in (bias, their_bias))
                mine, other = weight[:n], their_weight[:n]
                if unlearned is vanilla and self.weight is None:
                    other, their_bias = mine, bias
                self.distance = HeadDistance(mine, other, bias, their_bias, our_scale, their_scale)

    @property
    def linear(self) -> bool:
        """Whether the losses come from the heads' inner products."""
        return self.distance is not None

    @contextmanager
    def materialised(self) -> Iterator[None]:
        """Inside, heads that are called for logits are in memory."""
        with ExitStack() as stack:
            if not self.linear:
                stack.enter_context(materialised(head_of(self.unlearned)))
                stack.enter_context(materialised(head_of(self.vanilla)))
            yield

    def mse(self, ours: Float[Tensor, "token d"], theirs: Float[Tensor, "token e"]) -> Float[Tensor, " token"]:
        """Logit MSE of each token, float64."""
        return self.to(theirs)(ours)

    def to(self, theirs: Float[Tensor, "token e"]) -> Callable[[Tensor], Tensor]:
        """The same from one `theirs`, as a function of `ours`."""
        if self.distance is None:
            return lambda ours: self._by_logits(ours, theirs)
        at = self.distance.a.device
        distance = self.distance.to(theirs.to(at))
        return lambda ours: distance(ours.to(at))

    def power(self, theirs: Float[Tensor, "token d"]) -> Float[Tensor, " token"]:
        """Mean squared vanilla logit of each token, float64."""
        if self.distance is not None:
            return self.distance.power(theirs.to(self.distance.a.device))
        return torch.cat([logit_power(self._logits(self.vanilla, part)) for part in self._chunks(theirs)])

    def _by_logits(self, ours: Tensor, theirs: Tensor) -> Tensor:
        found = []
        for mine, other in zip(self._chunks(ours), self._chunks(theirs), strict=True):
            a = self.logits(mine)
            found.append(logit_mse(a, self._logits(self.vanilla, other).to(a.device)))
        return torch.cat(found)

    def logits(self, states: Float[Tensor, "token d"]) -> Float[Tensor, "token vocab"]:
        """The logits of rows, of the vocabulary rows that both models have."""
        if self.weight is None:
            return self._logits(self.unlearned, states)
        head = head_of(self.unlearned)
        run = LinearMap(self.weight.T, own_bias(head, head, states))
        with override_forward({head: lambda _, x, *__: run(x)}):
            return self._logits(self.unlearned, states)

    def _logits(self, body: Anatomy, states: Tensor) -> Tensor:
        """The logits of the vocabulary rows that both models have."""
        return logits_of(body, states)[..., : self.rows]

    def _chunks(self, states: Tensor) -> tuple[Tensor, ...]:
        return states.split(tokens_at_once(self.unlearned))


def tokens_at_once(body: Anatomy) -> int:
    """For how many tokens logits are computed together."""
    vocabulary: int = core(body.model.get_input_embeddings()).weight.shape[0]  # type: ignore[assignment, index, operator]
    return max(1, LOGIT_BYTES // (8 * vocabulary))


def head_of(body: Anatomy) -> nn.Module:
    """A model's output embeddings; raises `NotExactError` where it has none."""
    head = body.model.get_output_embeddings()  # type: ignore[operator]
    if not isinstance(head, nn.Module):
        raise NotExactError("it has no output embeddings")
    return head


def _parameters(head: nn.Module) -> tuple[Tensor, Tensor | None]:
    holder = core(head)
    return holder.weight, getattr(holder, "bias", None)  # type: ignore[return-value]


def _is_linear(head: nn.Module) -> bool:
    """Whether the head is what its weight and bias say: no adapter, no packing, nothing around it."""
    weight, bias = _parameters(head)
    if not isinstance(weight, Tensor) or weight.dim() != 2 or not weight.is_floating_point():
        return False
    probe = torch.linspace(-1, 1, weight.shape[1], device=weight.device, dtype=weight.dtype)[None]
    return torch.equal(head(probe), nn.functional.linear(probe, weight, bias))


def _scale(body: Anatomy) -> float | None:
    """The factor between what the head returns and the logits; `None` when it is not a factor (a soft cap)."""
    widest = torch.float64 if has_float64(device_of(body.model)) else torch.float32
    rows = shared_rows(body.model, body.model)
    probe = torch.linspace(-40.3, 41.7, rows, dtype=widest)[None, None]
    dtype = next(p.dtype for p in body.model.parameters() if p.is_floating_point())
    with override_forward({head_of(body): lambda *_, **__: probe.to(device_of(body.model))}):
        given = head_logits(body, torch.zeros(1, 1, 1, dtype=dtype))
    factors = (given.cpu().double() / probe.double()).flatten()
    return float(factors[0]) if torch.allclose(factors, factors[0], rtol=_FACTOR, atol=0) else None


def logits_of(body: Anatomy, states: Float[Tensor, "token d"]) -> Float[Tensor, "token vocab"]:
    """The model's own way from final states to logits."""
    return head_logits(body, states[None])[0]
