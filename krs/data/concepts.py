"""Concepts that come with krs: questions about them, about other things, and paragraphs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from krs._typing import Message
from krs.errors import KrsError


@dataclass(frozen=True)
class Concept:
    """Something that a model may be made to unlearn.

    Attributes:
        name: what it is called.
        questions: about it; for Harry Potter, ten that the bundled model answers correctly.
        retain_questions: about other things, to train on so that they are kept.
        unrelated_questions: about other things again, never trained on, to see what was kept.
        paragraphs: texts about it.
    """

    name: str
    questions: tuple[str, ...]
    retain_questions: tuple[str, ...]
    unrelated_questions: tuple[str, ...]
    paragraphs: tuple[str, ...]


def concepts() -> list[str]:
    """Names of the concepts that come with krs.

    >>> concepts()
    ['harry_potter']
    """
    folder = files("krs.data") / "concepts"
    return sorted(entry.name.removesuffix(".json") for entry in folder.iterdir() if entry.name.endswith(".json"))


def load_concept(name: str) -> Concept:
    """A concept that comes with krs; raises `KrsError` for a name that there is not."""
    if name not in concepts():
        raise KrsError(f"no concept {name!r} comes with krs: there are {', '.join(concepts())}")
    text = (files("krs.data") / "concepts" / f"{name}.json").read_text(encoding="utf-8")
    found: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in json.loads(text).items()}
    return Concept(**found)


def as_chat(questions: tuple[str, ...]) -> list[list[Message]]:
    """Each question as a conversation of one user message, for the tokenizer's chat template."""
    return [[{"role": "user", "content": question}] for question in questions]
