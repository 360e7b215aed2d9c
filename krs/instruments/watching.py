"""Instruments that look at a model while it is being unlearned."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from torch import nn

from krs._typing import Tokenizer
from krs.errors import KrsError
from krs.hooks.unwrap import unwrap
from krs.instruments.case import Case
from krs.instruments.facts import FactLike, as_facts
from krs.instruments.instrument import Instrument, instrument


def watch(
    vanilla: nn.Module,
    tokenizer: Tokenizer,
    facts: Iterable[FactLike],
    *,
    instruments: Sequence[str | Instrument] = ("nll_tail",),
    every: int = 5,
    retain: nn.Module | None = None,
    unrelated: Iterable[FactLike] = (),
    chat: bool | None = None,
    n_tokens: int = 64,
    seed: int = 0,
) -> Watcher:
    """What `krs.unlearn.run(watch=…)` takes: reads instruments every so many steps and gives their means.

    >>> import krs
    >>> from krs import unlearn
    >>> vanilla, tokenizer = krs.load("smollm2")
    >>> facts = [("Who wrote Emma?", "Emma was written by Jane Austen.")]
    >>> looks = krs.instruments.watch(vanilla, tokenizer, facts, every=1)
    >>> list(looks(vanilla, 0))
    ['nll_tail']
    >>> until = {"watch": looks, "stop_when": "nll_tail > 0.01"}
    >>> unlearned = unlearn.run("ga", vanilla, forget=facts, steps=1, progress=False, **until)

    Args:
        vanilla: the model that is unlearned from, as it was.
        tokenizer: of it.
        facts: what is to be forgotten, with right answers, as in `krs.dissect`.
        instruments: by name or as instances. Cheap ones, for each is read again and again, without nulls.
        every: look at steps 0, `every`, 2 `every` …
        retain: a model that never knew the facts, for instruments that need one.
        unrelated: as in `krs.dissect`.
        chat: as in `krs.dissect`; so are `n_tokens` and `seed`.
        n_tokens: see `chat`.
        seed: see `chat`.

    Raises `KrsError` for unknown instruments, and for such as do not apply.
    """
    if isinstance(every, bool) or every < 1:
        raise KrsError(f"every={every!r}: give a number of steps, at least 1")
    tools = tuple(instrument(one) for one in instruments)
    others = list(unrelated)
    case = Case.make(
        vanilla,
        vanilla,
        tokenizer,
        as_facts(facts),
        as_facts(others, "unrelated") if others else (),
        retain,
        chat=chat,
        n_tokens=n_tokens,
        seed=seed,
    )
    for tool in tools:
        if (lack := tool.lacks(case)) is not None:
            raise KrsError(f"the instrument {tool.name!r} does not apply here: it {lack}")
    return Watcher(case, tools, every)


class Watcher:
    """Reads instruments of a model in training.

    Attributes:
        every: so many steps.
        tools: what is read.
    """

    def __init__(self, case: Case, tools: tuple[Instrument, ...], every: int) -> None:
        self.case, self.tools, self.every = case, tools, every

    def __call__(self, model: nn.Module, step: int) -> dict[str, float]:
        """The mean of each instrument; nothing at the steps between."""
        if step % self.every:
            return {}
        student = unwrap(model)
        case = replace(self.case, unlearned=student)
        self.case.found.pop(student, None)  # found of it at earlier weights
        means = {tool.name: tool.read(case, nulls=False).mean for tool in self.tools}
        self.case.found.pop(student, None)
        return means
