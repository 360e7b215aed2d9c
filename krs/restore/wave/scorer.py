"""The measures of a job, from what the heads get of its rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property, partial

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from krs.hooks.offload import materialised
from krs.metrics.measures import LOGIT_MSE, ReferenceTokens, ScoredTokens
from krs.restore.job import Job, Values
from krs.restore.wave.heads import LOGIT_BYTES, Heads, head_of, logits_of, tokens_at_once
from krs.restore.wave.overrides import end_weight
from krs.restore.wave.schedule import Interventions

_KEPT = 3
"""Of a reference: its logits, their log-probabilities, and the probabilities."""


class Scorer:
    """The measures of a job, from the states that heads get.

    Attributes:
        job: whose measures.
        heads: of the recipient against the reference.
        donor_heads: of the donor, where that is another model than the reference.
        restored: the recipient's with what is done to it, against the reference's.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self.heads = Heads(job.recipient, job.reference)
        self.donor_heads = None if job.donor is job.reference else Heads(job.donor, job.reference, once=True)
        wanted = {r.at("unembedding") for r in job.plan} - {frozenset()}
        self.restored: dict[Interventions, Heads] = {frozenset(): self.heads} | {i: self._with_other(i) for i in wanted}

    def _with_other(self, interventions: Interventions) -> Heads:
        """The recipient's head with the donor's weight, or some rows of it, against the reference's."""
        ours, theirs = self.job.recipient, self.job.donor
        with materialised(head_of(ours)), materialised(head_of(theirs)):
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
                    stack.enter_context(materialised(head_of(body)))
            yield


class Ends:
    """Both models as they are and the reference at the end of a pass, and what that makes of the pass's rows.

    What does not depend on rows is computed once, however many parts the rows come in; logits of the reference only
    where they are few.

    Args:
        scorer: of the job.
        recipient: what the head gets of the recipient as it is.
        donor: of the donor as it is.
        reference: of the reference.
        target_ids: what is predicted.
    """

    def __init__(
        self,
        scorer: Scorer,
        recipient: Float[Tensor, "token d"],
        donor: Float[Tensor, "token d"],
        reference: Float[Tensor, "token e"],
        target_ids: Int[Tensor, " token"],
    ) -> None:
        self.scorer, self.job = scorer, scorer.job
        self.recipient, self.donor, self.reference, self.target_ids = recipient, donor, reference, target_ids
        self._to_reference: dict[Interventions, Callable[[Tensor], Tensor]] = {}
        self._reference_tokens: dict[int, ReferenceTokens] = {}

    def values(
        self, rows: Sequence[Callable[[], Tensor]], heads: Sequence[Interventions]
    ) -> tuple[dict[str, Values], np.ndarray]:
        """Every measure, and the reference's power.

        Args:
            rows: for each row the states that the head gets, when they are called for.
            heads: for each row what is done to the head.
        """
        restored = [self._distance(h)(row()) for h, row in zip(heads, rows, strict=True)]
        found = {LOGIT_MSE.name: _values(restored, *self._distances)}
        if self.job.logit_measures:
            mine = [self.scorer.restored[h] for h in heads]
            for name, each in self._by_logits(rows, [h.logits for h in mine]).items():
                found[name] = _values(each, *self._measured[name])
        return found, self._power

    def _distance(self, head: Interventions) -> Callable[[Tensor], Tensor]:
        """The logit MSE against the reference, as a function of what a head gets."""
        if head not in self._to_reference:
            self._to_reference[head] = self.scorer.restored[head].to(self.reference)
        return self._to_reference[head]

    @cached_property
    def _distances(self) -> tuple[Tensor, Tensor]:
        """The logit MSE of the recipient and the donor as they are."""
        own = self._distance(frozenset())(self.recipient)
        if self.scorer.donor_heads is None:
            return own, torch.zeros_like(own)
        return own, self.scorer.donor_heads.mse(self.donor, self.reference).to(own)

    @cached_property
    def _power(self) -> np.ndarray:
        return self.scorer.heads.power(self.reference).cpu().numpy()

    @cached_property
    def _measured(self) -> dict[str, list[Tensor]]:
        """What measures that need logits say of the recipient and the donor as they are."""
        ends = [self.recipient, self.donor]
        return self._by_logits(
            [lambda end=end: end for end in ends],  # type: ignore[misc]
            [self.scorer.heads.logits, partial(logits_of, self.job.donor)],
        )

    def _by_logits(
        self, rows: Sequence[Callable[[], Tensor]], logits: Sequence[Callable[[Tensor], Tensor]]
    ) -> dict[str, list[Tensor]]:
        """A chunk of tokens after the other, some rows of one head together."""
        job = self.job
        found: dict[str, list[list[Tensor]]] = {m.name: [[] for _ in rows] for m in job.logit_measures}
        at_once = tokens_at_once(job.recipient)
        for part in torch.arange(len(self.target_ids)).split(at_once):
            chunk = slice(int(part[0]), int(part[-1]) + 1)
            against = self._against(chunk)
            for together in _runs(logits, max(1, at_once // len(part))):
                stacked = torch.cat([rows[i]()[chunk] for i in together])
                made = logits[together[0]](stacked).to(against.logits.device)[..., : job.vocabulary_rows]
                for i, mine in zip(together, made.split(len(part)), strict=True):
                    tokens = ScoredTokens(mine, against)
                    for m in job.logit_measures:
                        found[m.name][i].append(m(tokens))
        return {name: [torch.cat(parts) for parts in each] for name, each in found.items()}

    def _against(self, chunk: slice) -> ReferenceTokens:
        """The reference's logits of some tokens; kept for the next part of the pass where all of them are few."""
        if chunk.start in self._reference_tokens:
            return self._reference_tokens[chunk.start]
        theirs = logits_of(self.job.reference, self.reference[chunk])[..., : self.job.vocabulary_rows]
        theirs = theirs.to(self.recipient.device)
        found = ReferenceTokens(theirs, self.target_ids[chunk].to(theirs.device))
        if _KEPT * len(self.target_ids) * theirs[0].nbytes <= LOGIT_BYTES:
            self._reference_tokens[chunk.start] = found
        return found


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
