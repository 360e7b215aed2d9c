"""What a model may or may not know: a question, its answer, and what tells the fact from its wording."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeAlias

from krs import files
from krs.errors import KrsError
from krs.prompts.listed import kind, listed


@dataclass(frozen=True)
class Fact:
    """One fact.

    Attributes:
        question: as it was taught, or as it was unlearned.
        answer: the right one, as a sentence or a few words.
        paraphrases: the same question in other words: a model that knows the fact answers these too.
        wrong: answers of the same kind that are wrong, for the truth ratio.
        key: the words of the answer that are the fact; what recall looks for. The whole answer if not given.
        subject: whom or what the question is about.
    """

    question: str
    answer: str
    paraphrases: tuple[str, ...] = ()
    wrong: tuple[str, ...] = ()
    key: str = ""
    subject: str = ""

    @property
    def sought(self) -> str:
        """What has to be in an answer that is right."""
        return self.key.strip() or self.answer.strip().rstrip(".")

    def in_other_words(self, i: int = 0) -> Fact:
        """The fact asked by its paraphrase `i`."""
        return Fact(self.paraphrases[i], self.answer, (), self.wrong, self.key, self.subject)


FactLike: TypeAlias = Fact | Mapping[str, Any] | tuple[str, str]

_NAMES = tuple(f.name for f in fields(Fact))
_LISTS = ("paraphrases", "wrong")


def as_facts(given: Iterable[FactLike], what: str = "target") -> tuple[Fact, ...]:
    """Facts as callers give them: `Fact`s, `(question, answer)` pairs, or objects with these fields.

    >>> as_facts([("Who wrote Emma?", "Jane Austen.")])[0].sought
    'Jane Austen'

    Raises `KrsError` for none, for one without question or answer, and for a key that is not in its answer; it says
    which.
    """
    found = [_fact(one, f"{what} fact {i}") for i, one in enumerate(listed(given, what, "fact"))]
    if not found:
        raise KrsError(f"the {what} has no facts: give at least one question with its answer")
    return tuple(found)


def read_facts(path: str | Path, what: str = "target") -> tuple[Fact, ...]:
    """Facts of a file: JSON (a list) or JSON lines, an object a fact; `prompt` stands for `question` too.

    Raises `KrsError` as `as_facts` does, and for a file of questions alone, because nothing says what is right.
    """
    rows = files.read_prompts(Path(path))
    if any(isinstance(row, str) for row in rows):
        raise KrsError(
            f"{str(path)!r} has questions without answers: give JSON lines with 'question' and 'answer', or pass "
            "the questions to krs.dissect, which takes the vanilla model's own answers"
        )
    return as_facts(rows, what)


def write_facts(facts: Iterable[Fact]) -> str:
    """Facts as JSON lines, which `read_facts` reads."""
    rows = ({k: v for k, v in vars(fact).items() if v} for fact in facts)
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _fact(given: Any, where: str) -> Fact:
    if isinstance(given, Fact):
        given = vars(given)
    if isinstance(given, tuple | list) and len(given) == 2:
        given = {"question": given[0], "answer": given[1]}
    if not isinstance(given, Mapping):
        raise KrsError(f"{where} is {kind(given)}: give a pair (question, answer), or an object with these fields")
    row = dict(given)
    if "question" not in row and "prompt" in row:
        row["question"] = row.pop("prompt")
    values: dict[str, Any] = {}
    for name in _NAMES:
        value = row.get(name, () if name in _LISTS else "")
        values[name] = _texts(value, f"{where}, its {name},") if name in _LISTS else _text(value, f"{where}, {name!r},")
    for name in ("question", "answer"):
        if not values[name].strip():
            raise KrsError(f"{where} has no {name}: give both a question and its answer")
    for name in _LISTS:
        if not all(text.strip() for text in values[name]):
            raise KrsError(f"{where}, its {name}, has an empty text: leave it out")
    if values["key"] and values["key"] not in values["answer"]:
        raise KrsError(f"{where}: its key {values['key']!r} is not in its answer {values['answer']!r}")
    if values["answer"].strip() in [wrong.strip() for wrong in values["wrong"]]:
        raise KrsError(f"{where} has its right answer {values['answer']!r} among the wrong ones: leave it out there")
    fact = Fact(**values)
    if not fact.sought:
        raise KrsError(f"{where}: {fact.answer!r} has no words that could be found in an answer: give others, or a key")
    return fact


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise KrsError(f"{where} is {kind(value)}: give text")
    return value


def _texts(value: Any, where: str) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, tuple | list):
        raise KrsError(f"{where} is {kind(value)}: give a list of texts")
    return tuple(_text(one, where) for one in value)
