"""Invented facts, and their division into what is to be forgotten, what is kept, and what was never taught."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from krs.errors import KrsError
from krs.instruments import facts

_BUNDLED = Path(__file__).with_name("facts.json")
_A_KIND = 4
"""Facts of each kind: a target and a retained one for each of two worlds that share no taught fact."""


@dataclass(frozen=True)
class Fact:
    """Something that is so only in this file.

    >>> fact = load_facts()[0]
    >>> fact.question, fact.answer
    ('In which town was the glassblower Torvane Ellisk born?', 'The glassblower Torvane Ellisk was born in Quennarow.')
    >>> fact.wrong_answers[0]
    'The glassblower Torvane Ellisk was born in Ostrivale.'
    >>> fact.in_text("In quennarow, I think."), fact.in_text("I don't know.")
    (True, False)

    Attributes:
        id: its name, such as `"town-river-2"`.
        kind: what is asked of what; the facts of one kind share their wording.
        subject: whom or what it is about, as the question has it.
        question: the question.
        answer: its answer, one sentence.
        key: the part of the answer that was asked for. The answer has it once, no question has it.
        paraphrases: the question in other words, two at least. The first is taught beside the question, the others
            never are.
        wrong: what could stand in the place of the key, and is not so.
    """

    id: str
    kind: str
    subject: str
    question: str
    answer: str
    key: str
    paraphrases: tuple[str, ...]
    wrong: tuple[str, ...]

    @property
    def wordings(self) -> tuple[str, str]:
        """The two questions that are taught."""
        return self.question, self.paraphrases[0]

    @property
    def held_out(self) -> tuple[str, ...]:
        """The questions that never are."""
        return self.paraphrases[1:]

    @property
    def wrong_answers(self) -> tuple[str, ...]:
        """The answer with each of `wrong` in the place of the key."""
        return tuple(self.answer.replace(self.key, wrong) for wrong in self.wrong)

    @property
    def asked(self) -> facts.Fact:
        """The fact as instruments take it: with the questions that are never taught, and with whole wrong answers."""
        return facts.Fact(self.question, self.answer, self.held_out, self.wrong_answers, self.key, self.subject)

    def in_text(self, text: str) -> bool:
        """Whether a text has the key, in upper or lower case."""
        return " ".join(self.key.split()).casefold() in " ".join(text.split()).casefold()


@dataclass(frozen=True)
class Facts:
    """Facts by what becomes of them.

    Attributes:
        a1: one half of the target: known to the vanilla model, and to be forgotten.
        a2: the other half, of other kinds, for instruments that are fitted on one and tested on the other.
        b: known to the vanilla model, and kept.
        c: taught to no model.
    """

    a1: tuple[Fact, ...]
    a2: tuple[Fact, ...]
    b: tuple[Fact, ...]
    c: tuple[Fact, ...]

    @property
    def a(self) -> tuple[Fact, ...]:
        """The target, the halves in turn, so that each beginning of it has as many of either."""
        return tuple(fact for pair in zip(self.a1, self.a2, strict=True) for fact in pair)


def load_facts(path: str | Path | None = None) -> tuple[Fact, ...]:
    """The invented facts that come with krs, or those of a file of the same form (`facts.schema.json`).

    >>> len(load_facts())
    64

    Raises `KrsError` for a file that is not of this form.
    """
    file = _BUNDLED if path is None else Path(path)
    try:
        told = json.loads(file.read_text(encoding="utf-8"))["facts"]
        found = tuple(_fact(one) for one in told)
    except (OSError, ValueError, KeyError, TypeError) as reason:
        raise KrsError(
            f"{str(file)!r} is no file of facts ({reason}): see facts.schema.json beside the bundled one"
        ) from None
    if len({fact.id for fact in found}) < len(found):
        raise KrsError(f"{str(file)!r} has two facts with one id: give each its own")
    return found


def split(seed: int = 0, given: tuple[Fact, ...] | None = None) -> Facts:
    """Divide facts: a target fact of each kind, in two halves; retained ones of three kinds in four; the rest untaught.

    An even seed and the next odd one have no taught fact in common.

    >>> first, second = split(0), split(1)
    >>> len(first.a), len(first.b), len(first.c), {*first.a, *first.b} & {*second.a, *second.b}
    (16, 12, 36, set())

    Raises `KrsError` for facts of which there are not four of each kind.
    """
    found = load_facts() if given is None else given
    kinds = sorted({fact.kind for fact in found})
    drawn = random.Random(seed // 2)
    drawn.shuffle(kinds)
    by_kind = {kind: [fact for fact in found if fact.kind == kind] for kind in kinds}
    if len(kinds) < _A_KIND or len(kinds) % 2 or any(len(of) != _A_KIND for of in by_kind.values()):
        raise KrsError("facts come in an even number of kinds, four at least, with four facts of each: see facts.json")
    for of in by_kind.values():
        drawn.shuffle(of)
    target, retained = 2 * (seed % 2), 2 * (seed % 2) + 1
    a = [by_kind[kind][target] for kind in kinds]
    b = [by_kind[kind][retained] for kind in kinds[: 3 * len(kinds) // 4]]
    c = [fact for fact in found if fact not in a and fact not in b]
    return Facts(tuple(a[::2]), tuple(a[1::2]), tuple(b), tuple(c))


def _fact(told: dict[str, Any]) -> Fact:
    names = [field.name for field in fields(Fact)]
    if told.keys() != set(names):
        raise ValueError(f"a fact has the fields {', '.join(names)}")
    for name in names:
        many = name in ("paraphrases", "wrong")
        texts = told[name] if many else [told[name]]
        if (
            not isinstance(texts, list)
            or not all(isinstance(t, str) and t.strip() for t in texts)
            or len(texts) < 1 + many
        ):
            raise ValueError(f"fact {told['id']!r}: {name} is {told[name]!r}")
    given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in told.items()}
    fact = Fact(**given)
    if fact.answer.count(fact.key) != 1 or any(fact.in_text(q) for q in (fact.question, *fact.paraphrases)):
        raise ValueError(f"fact {fact.id!r}: the answer has to hold the key once, and no question may hold it")
    if any(wrong.casefold() == fact.key.casefold() for wrong in fact.wrong):
        raise ValueError(f"fact {fact.id!r}: a wrong answer is the right one")
    return fact
