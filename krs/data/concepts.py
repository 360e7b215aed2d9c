"""Concepts: questions about one thing, about other things, and texts; bundled ones, and ones from files."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from krs._typing import Message
from krs.data.entries import Entry, read_entries
from krs.data.paper_format import from_paper_format, is_paper_format
from krs.errors import KrsError

_BUNDLED = Path(__file__).parent / "concepts"
_QUESTIONS = ("questions", "retain_questions", "unrelated_questions")


@dataclass(frozen=True)
class Concept:
    """Something that a model may be made to unlearn.

    >>> emma = Concept("Emma", ("Who wrote Emma?",), answers=("Jane Austen.",))
    >>> emma.names
    ('Emma',)

    Attributes:
        name: what it is called.
        questions: about it; of the bundled concepts, ten that the bundled model answers correctly.
        retain_questions: about other things, to train on so that they are kept.
        unrelated_questions: about other things again, never trained on, to see what was kept.
        paragraphs: texts about it.
        aliases: other names by which texts mention it, and names that belong to it alone.
        completions: sentences about it, each as its first and its second half.
        answers: reference answers, one for each of `questions`, or none.
        answer_tokens: how many tokens of each answer the paper's code scores, or none.
        id: its number in the paper's data.
        layer: of the value vector that carries it, according to the paper's data.
        unit: which of that layer's value vectors (the paper's `Dim`).
        source: where it comes from: a file, or a note on licence.
    """

    name: str
    questions: tuple[str, ...]
    retain_questions: tuple[str, ...] = ()
    unrelated_questions: tuple[str, ...] = ()
    paragraphs: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    completions: tuple[tuple[str, str], ...] = ()
    answers: tuple[str, ...] = ()
    answer_tokens: tuple[int, ...] = ()
    id: int | None = None
    layer: int | None = None
    unit: int | None = None
    source: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """Its name and its aliases."""
        return (self.name, *self.aliases)

    def only(self, numbers: Sequence[int]) -> Concept:
        """The concept with some of its questions, by number from 0, and their answers; all else is kept.

        >>> load_concept("paris").only([0, 2]).questions == load_concept("paris").questions[::2][:2]
        True

        Raises `KrsError` for numbers that there are not, none, and one that is there twice.
        """
        wrong = [n for n in numbers if not 0 <= n < len(self.questions)]
        if wrong or not numbers or len(set(numbers)) < len(numbers):
            what = f"there is no question {wrong[0]}" if wrong else "give each question once, and at least one"
            last = len(self.questions) - 1
            raise KrsError(f"questions {list(numbers)} of {self.name!r}: {what}; they are counted from 0 to {last}")
        return replace(
            self,
            questions=tuple(self.questions[n] for n in numbers),
            answers=tuple(self.answers[n] for n in numbers if self.answers),
            answer_tokens=tuple(self.answer_tokens[n] for n in numbers if self.answer_tokens),
        )


def concepts() -> list[str]:
    """Names of the concepts that come with krs.

    >>> concepts()
    ['albert_einstein', 'harry_potter', 'paris', 'solar_system']
    """
    return sorted(path.stem for path in _BUNDLED.glob("*.json"))


def load_concept(name_or_path: str | Path, concept: str | None = None) -> Concept:
    """A concept that comes with krs, or one from a file.

    >>> load_concept("harry_potter").questions[0]
    'Who wrote the Harry Potter books?'

    Args:
        name_or_path: one of `concepts()`, or a file as in `load_concepts`.
        concept: the name of the one wanted (in upper or lower case), or its `id`, for a file with several.

    Raises:
        KrsError: there is no such concept or file, the file is not right, or it holds several and none was named.
    """
    found = load_concepts(name_or_path)
    names = ", ".join(repr(c.name) for c in found)
    if concept is None:
        if len(found) > 1:
            raise KrsError(f"{name_or_path} holds {len(found)} concepts: say which with concept=, one of {names}")
        return found[0]
    wanted = concept.strip().casefold()
    matches = [c for c in found if c.name.casefold() == wanted] or [c for c in found if str(c.id) == wanted]
    if not matches:
        raise KrsError(f"{name_or_path} has no concept {concept!r}: there are {names}")
    if len(matches) > 1:
        raise KrsError(f"{name_or_path} has {concept!r} {len(matches)} times: take the one you mean from load_concepts")
    return matches[0]


def load_concepts(name_or_path: str | Path) -> list[Concept]:
    """All concepts of a file, in krs's own format or in that of the paper's released files, told apart by their keys.

    A `.json` file holds an object or a list of objects, a `.jsonl` file an object a line. `docs/concepts.md` has the
    fields, `krs/data/concept.schema.json` has them for editors and other programs. A name out of `concepts()` gives
    that one, as "Harry Potter" and "harry-potter" do.

    >>> import json, tempfile
    >>> file = Path(tempfile.mkdtemp()) / "mine.json"
    >>> _ = file.write_text(json.dumps([{"name": "Emma", "questions": ["Who wrote Emma?"]}]))
    >>> load_concepts(file)[0].name
    'Emma'

    Raises:
        KrsError: there is no such file, or something in it is not right; the message names the concept and the field.
    """
    bundled = _bundled(str(name_or_path))
    file = _BUNDLED / f"{bundled}.json" if bundled is not None else Path(name_or_path)
    if not file.is_file():
        near = get_close_matches(_plain(str(name_or_path)), concepts(), n=1)
        raise KrsError(
            f"no concept {str(name_or_path)!r} comes with krs, and there is no such file"
            + (f": did you mean {near[0]!r}? The" if near else ": the")
            + f" bundled ones are {', '.join(concepts())}; a file of your own ends in .json or .jsonl"
        )
    return [_concept(entry, file) for entry in read_entries(file, name_fields=("name", "Concept"))]


def as_chat(questions: Iterable[str]) -> list[list[Message]]:
    """Each question as a conversation of one user message, for the tokenizer's chat template.

    >>> as_chat(["Who wrote Emma?"])
    [[{'role': 'user', 'content': 'Who wrote Emma?'}]]

    Raises `KrsError` for one question where a list is wanted.
    """
    if isinstance(questions, str):
        raise KrsError("questions is one string: pass a list of questions, [question]")
    return [[{"role": "user", "content": question}] for question in questions]


def _bundled(name: str) -> str | None:
    """The bundled concept of this name, written in any case, with blanks or hyphens; a file of that name goes first."""
    if name in concepts():
        return name
    return _plain(name) if _plain(name) in concepts() and not Path(name).is_file() else None


def _plain(name: str) -> str:
    """As bundled concepts are called: "Harry Potter" is "harry_potter"."""
    return re.sub(r"[\W_]+", "_", name.casefold()).strip("_")


def _concept(entry: Entry, file: Path) -> Concept:
    if is_paper_format(entry.fields):
        wikipedia = "; paragraphs from Wikipedia, CC BY-SA" if "wikipedia_content" in entry.fields else ""
        return Concept(**from_paper_format(entry), source=f"{file.name}{wikipedia}")
    found = _own_format(entry)
    return Concept(**{**found, "source": found["source"] or file.name})


def _own_format(entry: Entry) -> dict[str, Any]:
    entry.allow([*(field.name for field in fields(Concept)), "$schema"])
    entry.require("name", "a string")
    entry.require("questions", "a list of strings")
    asked = {field: entry.texts(field, distinct=True) for field in _QUESTIONS}
    if not asked["questions"]:
        raise entry.error("'questions' is an empty list: give at least one question")
    _check_apart(entry, asked)
    answers, tokens = entry.texts("answers"), entry.numbers("answer_tokens")
    for field in ("answers", "answer_tokens"):
        entry.match(field, len(asked["questions"]), "questions")
    return {
        **asked,
        "answers": answers,
        "answer_tokens": tokens,
        "name": entry.text("name"),
        "paragraphs": entry.texts("paragraphs"),
        "aliases": entry.texts("aliases", distinct=True),
        "completions": entry.pairs("completions"),
        "id": entry.number("id"),
        "layer": entry.number("layer"),
        "unit": entry.number("unit"),
        "source": entry.text("source"),
    }


def _check_apart(entry: Entry, asked: dict[str, tuple[str, ...]]) -> None:
    """A question that is to be forgotten must not be kept, and one to measure with must not be trained on."""
    seen: dict[str, str] = {}
    for field, questions in asked.items():
        for question in questions:
            if question in seen:
                raise entry.error(f"{question!r} is in {seen[question]!r} and in {field!r}: remove one")
            seen[question] = field
