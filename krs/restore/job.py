"""What is run, and what comes of it: the two values between a sweep and an engine.

An engine is anything with a `name`, `exact`, `steps(job)` and `run(job)`, which yields `Chunk`s of numbers, and
`Progress` between them:

    class Mine:
        name = "mine"
        exact = True

        def run(self, job: Job) -> Iterator[Chunk | Progress]: ...

    krs.restore.register_engine(Mine())
    krs.sweep(vanilla, unlearned, prompts, engine="mine")
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from krs.hooks.anatomy import Anatomy
from krs.metrics.measures import Measure
from krs.models.pair import shared_rows
from krs.prompts import TokenBatch
from krs.restore.plan import Plan, for_prompts


@dataclass(frozen=True, eq=False)
class Job:
    """What an engine is to do.

    Attributes:
        plan: the restorations.
        recipient: the model that something is put into.
        donor: the model whose values and weights are put there.
        reference: the model that results are compared with; the donor, or the recipient, or a third one.
        batch: prompts with their scored tokens.
        measures: what is measured; the logit MSE is the first.
        budget: bytes that may be kept beside the models.
        done: bool `[restoration, prompt]`: what an earlier run has computed and is not to be computed again.
        donor_batch: what the donor reads while its activations are taken, aligned with `batch` at the ends; `None` for
            the same. Only an engine whose attribute `reads_donor_prompts` is true gets such a job.
    """

    plan: Plan
    recipient: Anatomy
    donor: Anatomy
    reference: Anatomy
    batch: TokenBatch
    measures: tuple[Measure, ...]
    budget: int
    done: np.ndarray
    donor_batch: TokenBatch | None = None

    @property
    def models(self) -> tuple[Anatomy, ...]:
        """Donor, recipient and reference, each once."""
        return tuple({id(b): b for b in (self.donor, self.recipient, self.reference)}.values())

    @property
    def vanilla(self) -> Anatomy:
        """The model that results are compared with, whichever way things go."""
        return self.reference

    @property
    def unlearned(self) -> Anatomy:
        """The other one; the recipient, where the reference is a third model."""
        return self.donor if self.reference is self.recipient else self.recipient

    @property
    def sides(self) -> dict[str, Anatomy]:
        """The models by what messages call them, each once."""
        if self.reference in (self.donor, self.recipient):
            return {"vanilla": self.vanilla, "unlearned": self.unlearned}
        return {"vanilla": self.donor, "unlearned": self.recipient, "reference": self.reference}

    def name_of(self, body: Anatomy) -> str:
        """What messages call one of them."""
        return next(name for name, side in self.sides.items() if side is body)

    def part(self, rows: slice) -> Job:
        """The same for some of the prompts, with the positions that were given for these."""
        plan = replace(self.plan, positions=for_prompts(self.plan.positions, rows))
        donor = None if self.donor_batch is None else self.donor_batch.rows(rows.start, rows.stop)
        batch = self.batch.rows(rows.start, rows.stop)
        return replace(self, plan=plan, batch=batch, done=self.done[:, rows], donor_batch=donor)

    @property
    def vocabulary_rows(self) -> int:
        """How many rows of the vocabulary all of them have."""
        return min(shared_rows(self.donor.model, body.model) for body in self.models)

    @property
    def logit_measures(self) -> tuple[Measure, ...]:
        """The measures that need logits."""
        return tuple(m for m in self.measures if m.needs == "logits")

    def todo(self, rows: slice) -> list[int]:
        """The restorations that are not computed for all of these prompts."""
        return np.flatnonzero(~self.done[:, rows].all(axis=1)).tolist()


@dataclass(frozen=True, eq=False)
class Values:
    """One measure of some prompts' scored tokens, prompt after prompt.

    Attributes:
        restored: `[restoration, token]`.
        recipient: `[token]`, of the recipient as it is.
        donor: `[token]`, of the donor as it is.
    """

    restored: Float[np.ndarray, "restoration token"]
    recipient: Float[np.ndarray, " token"]
    donor: Float[np.ndarray, " token"]


@dataclass(frozen=True, eq=False)
class Chunk:
    """Finished numbers.

    Attributes:
        engine: which made them; another than the one that yields them, where that has handed the work on.
        restorations: which of the plan's.
        prompts: of which prompts.
        values: by the measure's name.
        power: `[token]`, mean squared logit of the reference.
        note: why it was not the fastest engine, where the one that yields them has handed the work on.
    """

    engine: str
    restorations: Sequence[int]
    prompts: slice
    values: Mapping[str, Values]
    power: Float[np.ndarray, " token"]
    note: str = ""


@dataclass(frozen=True)
class Progress:
    """Some steps of `Engine.steps` are done.

    Attributes:
        steps: how many; negative where a way was given up and its steps are done once more.
        what: what comes next, in a few words.
        earlier: whether an earlier call did them, so that they say nothing about how fast this one is.
    """

    steps: int
    what: str = ""
    earlier: bool = False


@runtime_checkable
class Engine(Protocol):
    """Something that carries jobs out."""

    name: str
    exact: bool
    """Whether every number is computed and not estimated, so that its parts may stand beside another exact engine's."""

    def run(self, job: Job) -> Iterator[Chunk | Progress]:
        """Compute what is not done; raise `NotExactError`, with the reason, where that would not be exact."""

    def steps(self, job: Job) -> int:
        """How many steps of progress there will be, those that are done already included."""


class NotExactError(Exception):
    """An engine cannot do this model, or this plan, exactly; the message says why."""
