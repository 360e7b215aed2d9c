"""From final states to measures: by inner products where these are enough, by logits in chunks otherwise."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from krs.generation.forward import device_of, head_logits
from krs.hooks.anatomy import Anatomy
from krs.hooks.linear import LinearMap
from krs.hooks.offload import materialised
from krs.hooks.overrides import override_forward
from krs.hooks.unwrap import core
from krs.hooks.weights import own_bias
from krs.metrics.logits import HeadDistance, logit_mse, logit_power
from krs.metrics.measures import LOGIT_MSE, ReferenceTokens, ScoredTokens
from krs.models.devices import has_float64
from krs.models.pair import shared_rows
from krs.restore.job import Job, NotExactError, Values
from krs.restore.wave.overrides import end_weight
from krs.restore.wave.schedule import Interventions

_LOGIT_BYTES = 256 * 2**20
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
        ours, theirs = _head(unlearned), _head(vanilla)
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
                stack.enter_context(materialised(_head(self.unlearned)))
                stack.enter_context(materialised(_head(self.vanilla)))
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
        head = _head(self.unlearned)
        run = LinearMap(self.weight.T, own_bias(head, head, states))
        with override_forward({head: lambda _, x, *__: run(x)}):
            return self._logits(self.unlearned, states)

    def _logits(self, body: Anatomy, states: Tensor) -> Tensor:
        """The logits of the vocabulary rows that both models have."""
        return _logits(body, states)[..., : self.rows]

    def _chunks(self, states: Tensor) -> tuple[Tensor, ...]:
        return states.split(tokens_at_once(self.unlearned))


class Scorer:
    """The measures of a job, from the states that heads get.

    Attributes:
        job: whose measures.
        heads: of the recipient against the reference.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self._asked: tuple[tuple[Tensor, ...], tuple[Tensor, Tensor]] | None = None
        self.heads = Heads(job.recipient, job.reference)
        self.donor_heads = None if job.donor is job.reference else Heads(job.donor, job.reference, once=True)
        wanted = {r.at("unembedding") for r in job.plan} - {frozenset()}
        self.restored: dict[Interventions, Heads] = {frozenset(): self.heads} | {i: self._with_other(i) for i in wanted}

    def _with_other(self, interventions: Interventions) -> Heads:
        """The recipient's head with the donor's weight, or some rows of it, against the reference's."""
        ours, theirs = self.job.recipient, self.job.donor
        with materialised(_head(ours)), materialised(_head(theirs)):
            _, weight = end_weight(ours, theirs, interventions)
        return Heads(ours, self.job.reference, weight.T)

    @contextmanager
    def materialised(self) -> Iterator[None]:
        """Inside, heads that are called for logits are in memory."""
        with ExitStack() as stack:
            for heads in (self.heads, self.donor_heads):
                if heads is not None:
                    stack.enter_context(heads.materialised())
            if self.job.logit_measures:
                for body in {id(b): b for b in (self.job.recipient, self.job.donor, self.job.reference)}.values():
                    stack.enter_context(materialised(_head(body)))
            yield

    def values(
        self,
        rows: Sequence[Callable[[], Tensor]],
        heads: Sequence[Interventions],
        recipient: Float[Tensor, "token d"],
        donor: Float[Tensor, "token d"],
        reference: Float[Tensor, "token e"],
        target_ids: Int[Tensor, " token"],
    ) -> tuple[dict[str, Values], np.ndarray]:
        """Every measure, and the reference's power.

        Args:
            rows: for each row the states that the head gets, when they are called for.
            heads: for each row what is done to the head.
            recipient: those of the recipient as it is.
            donor: those of the donor as it is.
            reference: those of the reference.
            target_ids: what is predicted.
        """
        own, given = self._ends(recipient, donor, reference)
        mine = [self.restored[h] for h in heads]
        to_reference = {h: h.to(reference) for h in dict.fromkeys(mine)}
        restored = [to_reference[h](row()) for h, row in zip(mine, rows, strict=True)]
        found = {LOGIT_MSE.name: _values(restored, own, given)}
        if self.job.logit_measures:
            found |= self._by_logits(rows, mine, recipient, donor, reference, target_ids)
        return found, self.heads.power(reference).cpu().numpy()

    def _ends(self, recipient: Tensor, donor: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
        """What the recipient and the donor as they are lose against the reference; once for all parts of a pass."""
        asked = (recipient, donor, reference)
        if self._asked is None or any(a is not b for a, b in zip(asked, self._asked[0], strict=True)):
            own = self.heads.mse(recipient, reference)
            given = torch.zeros_like(own)
            if self.donor_heads is not None:
                given = self.donor_heads.mse(donor, reference).to(own)
            self._asked = asked, (own, given)
        return self._asked[1]

    def _by_logits(
        self,
        rows: Sequence[Callable[[], Tensor]],
        heads: Sequence[Heads],
        recipient: Tensor,
        donor: Tensor,
        reference: Tensor,
        target_ids: Tensor,
    ) -> dict[str, Values]:
        """A chunk of tokens after the other, the reference's logits once a chunk, some rows of one head together."""
        job = self.job
        states: list[Callable[[], Tensor]] = [lambda: recipient, lambda: donor, *rows]
        ours: list[Callable[[Tensor], Tensor]] = [self.heads.logits, partial(_logits, job.donor)]
        logits_of = [*ours, *(h.logits for h in heads)]
        found: dict[str, list[list[Tensor]]] = {m.name: [[] for _ in states] for m in job.logit_measures}
        at_once = tokens_at_once(job.recipient)
        for part in torch.arange(len(target_ids)).split(at_once):
            chunk = slice(int(part[0]), int(part[-1]) + 1)
            theirs = _logits(job.reference, reference[chunk])[..., : job.vocabulary_rows].to(recipient.device)
            against = ReferenceTokens(theirs, target_ids[chunk].to(theirs.device))
            for together in _runs(logits_of, max(1, at_once // len(part))):
                stacked = torch.cat([states[i]()[chunk] for i in together])
                logits = logits_of[together[0]](stacked).to(theirs.device)[..., : job.vocabulary_rows]
                for i, mine in zip(together, logits.split(len(part)), strict=True):
                    tokens = ScoredTokens(mine, against)
                    for m in job.logit_measures:
                        found[m.name][i].append(m(tokens))
        whole = {name: [torch.cat(parts) for parts in each] for name, each in found.items()}
        return {name: _values(each[2:], each[0], each[1]) for name, each in whole.items()}


def _runs(kinds: Sequence[object], longest: int) -> Iterator[list[int]]:
    """Places of equal things that stand side by side, at most so many together."""
    run: list[int] = []
    for i, kind in enumerate(kinds):
        if run and (kind != kinds[run[0]] or len(run) == longest):
            yield run
            run = []
        run.append(i)
    yield run


def _values(restored: Sequence[Tensor], recipient: Tensor, donor: Tensor) -> Values:
    """Numbers on the host, in one transfer."""
    together = torch.stack([recipient, donor, *restored]).cpu().numpy()
    return Values(together[2:], together[0], together[1])


def tokens_at_once(body: Anatomy) -> int:
    """For how many tokens logits are computed together."""
    vocabulary: int = core(body.model.get_input_embeddings()).weight.shape[0]  # type: ignore[assignment, index, operator]
    return max(1, _LOGIT_BYTES // (8 * vocabulary))


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
    widest = torch.float64 if has_float64(device_of(body.model)) else torch.float32
    probe = torch.tensor([[[-40.0, -3.0, -0.5, 0.5, 3.0, 40.0]]], dtype=widest)
    dtype = next(p.dtype for p in body.model.parameters() if p.is_floating_point())
    with override_forward({_head(body): lambda *_, **__: probe.to(device_of(body.model))}):
        given = head_logits(body, torch.zeros(1, 1, 1, dtype=dtype))
    factors = (given.cpu().double() / probe.double()).flatten()
    return float(factors[0]) if torch.allclose(factors, factors[0], rtol=_FACTOR, atol=0) else None


def _logits(body: Anatomy, states: Float[Tensor, "token d"]) -> Float[Tensor, "token vocab"]:
    """The model's own way from final states to logits."""
    return head_logits(body, states[None])[0]
