"""From final states to losses: by inner products where the heads are linear, by logits in chunks otherwise."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from krs.generation.forward import device_of
from krs.hooks.anatomy import Anatomy
from krs.hooks.unwrap import core
from krs.metrics.logits import HeadDistance, logit_mse, logit_power
from krs.models.pair import shared_rows
from krs.restore.wave.answers import answering, held
from krs.restore.wave.lane import NotExactError

_LOGIT_BYTES = 64 * 2**20


class Heads:
    """Distances between the logits of an unlearned and a vanilla model, from the states that their heads get.

    Attributes:
        linear: whether no logits are needed.
    """

    def __init__(self, unlearned: Anatomy, vanilla: Anatomy) -> None:
        self.unlearned, self.vanilla = unlearned, vanilla
        self.distance: HeadDistance | None = None
        self.rows = n = shared_rows(vanilla.model, unlearned.model)
        our_scale, their_scale = _scale(unlearned), _scale(vanilla)
        ours, theirs = _head(unlearned), _head(vanilla)
        with held(ours), held(theirs):
            if our_scale is not None and their_scale is not None and _is_linear(ours) and _is_linear(theirs):
                weight, bias = _parameters(ours)
                their_weight, their_bias = (x if x is None else x.to(weight.device) for x in _parameters(theirs))
                assert their_weight is not None
                bias, their_bias = (x if x is None else x[:n] for x in (bias, their_bias))
                self.distance = HeadDistance(weight[:n], their_weight[:n], bias, their_bias, our_scale, their_scale)

    @property
    def linear(self) -> bool:
        """Whether the losses come from the heads' inner products."""
        return self.distance is not None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Inside, heads that are called for logits are in memory."""
        with ExitStack() as stack:
            if not self.linear:
                stack.enter_context(held(_head(self.unlearned)))
                stack.enter_context(held(_head(self.vanilla)))
            yield

    def mse(self, ours: Float[Tensor, "*row token d"], theirs: Float[Tensor, "token d"]) -> Float[Tensor, "*row token"]:
        """Logit MSE of each token, float64, where it was summed: fetching it for each row would stop the device."""
        if self.distance is not None:
            at = self.distance.a.device
            return self.distance.mse(ours.to(at), theirs.to(at))
        rows = ours.reshape(-1, *theirs.shape)
        return torch.stack([self._by_logits(row, theirs) for row in rows]).reshape(ours.shape[:-1])

    def power(self, theirs: Float[Tensor, "token d"]) -> Float[Tensor, " token"]:
        """Mean squared vanilla logit of each token, float64, where it was summed."""
        if self.distance is not None:
            return self.distance.power(theirs.to(self.distance.a.device))
        return torch.cat([logit_power(self._logits(self.vanilla, part)) for part in self._chunks(theirs)])

    def _by_logits(self, ours: Tensor, theirs: Tensor) -> Tensor:
        found = []
        for mine, other in zip(self._chunks(ours), self._chunks(theirs), strict=True):
            a = self._logits(self.unlearned, mine)
            found.append(logit_mse(a, self._logits(self.vanilla, other).to(a.device)))
        return torch.cat(found)

    def _logits(self, body: Anatomy, states: Tensor) -> Tensor:
        """The logits of the vocabulary rows that both models have."""
        return _logits(body, states)[..., : self.rows]

    def _chunks(self, states: Tensor) -> tuple[Tensor, ...]:
        vocabulary: int = core(self.unlearned.model.get_input_embeddings()).weight.shape[0]  # type: ignore[assignment, index, operator]
        return states.split(max(1, _LOGIT_BYTES // (8 * vocabulary)))


def _head(body: Anatomy) -> nn.Module:
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
    dtype = next(p.dtype for p in body.model.parameters() if p.is_floating_point())
    probe = torch.tensor([[[-40.0, -3.0, -0.5, 0.5, 3.0, 40.0]]], dtype=dtype)
    with answering({_head(body): lambda *_, **__: probe.to(device_of(body.model))}):
        given = _after_decoder(body, torch.zeros(1, 1, 1, dtype=dtype))
    factors = (given.cpu().double() / probe.double()).flatten()
    return float(factors[0]) if torch.allclose(factors, factors[0], rtol=1e-3, atol=0) else None


def _logits(body: Anatomy, states: Float[Tensor, "token d"]) -> Float[Tensor, "token vocab"]:
    """The model's own way from final states to logits."""
    return _after_decoder(body, states[None])[0]


def _after_decoder(body: Anatomy, states: Tensor) -> Tensor:
    """The logits that the model makes of what its decoder returns."""
    from transformers.modeling_outputs import BaseModelOutput

    class States(BaseModelOutput):
        def __getattr__(self, name: str) -> None:
            """Caches, router logits and the like, which some families ask their decoder for."""

    at = device_of(body.model)
    out = States(last_hidden_state=states.to(at))
    tokens = torch.zeros(states.shape[:2], dtype=torch.long, device=at)
    answer: Callable[..., Any] = lambda *_, **__: out  # noqa: E731
    with answering({body.decoder: answer}):
        return body.model(input_ids=tokens, use_cache=False).logits
