"""What an edit is asked to forget: a prompt, the subject in it, and the old answer."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from krs._typing import Message
from krs.errors import KrsError
from krs.prompts import check_prompt, kind, listed

HOLE = "{}"
"""Stands for the subject in a prompt, and for the prompt in a context."""

Question: TypeAlias = str | Sequence[Message]


@dataclass(frozen=True)
class Request:
    """One fact to forget.

    >>> Request("The {} sails in", "Hogwarts Express", None).text
    'The Hogwarts Express sails in'

    Attributes:
        prompt: text, or chat messages; the subject occurs in it, or `{}` stands for it.
        subject: what the fact is about; its first occurrence counts.
        object: the old answer. No objective uses it: its likelihood before and after is logged.
    """

    prompt: Question
    subject: str
    object: str | None = None

    def __post_init__(self) -> None:
        if not self.subject.strip() or self.subject != self.subject.strip():
            raise KrsError(f"the subject {self.subject!r} is empty or has blanks around it: give the words alone")
        if not isinstance(self.prompt, str) and not self.prompt:
            raise KrsError(f"the request about {self.subject!r} has no messages: give at least one")
        if not any(self.subject in _filled(text, self.subject) for text in self._texts()):
            raise KrsError(
                f"the subject {self.subject!r} does not occur in the prompt {self.prompt!r}: write it as it stands "
                "there, or put {} in its place"
            )

    @property
    def chat(self) -> bool:
        """Whether the prompt is chat messages."""
        return not isinstance(self.prompt, str)

    @property
    def carrier(self) -> int:
        """Which message has the subject: the last one that does; 0 for a text."""
        return max(i for i, text in enumerate(self._texts()) if self.subject in _filled(text, self.subject))

    @property
    def text(self) -> str:
        """The text, or the message, that has the subject, with the subject in its place."""
        return _filled(self._texts()[self.carrier], self.subject)

    def _texts(self) -> list[str]:
        return [self.prompt] if isinstance(self.prompt, str) else [m["content"] for m in self.prompt]


def requests_from(
    questions: Sequence[Question],
    answers: Sequence[str] | None = None,
    *,
    subjects: Sequence[str],
    chat: bool = False,
) -> list[Request]:
    """Requests from questions: the subject of each is the first of `subjects` that is found in it.

    Longer ones are looked for first, as whole words, in any case. A question in which none occurs gets its last word
    as the subject, so that what it says up to there is what is edited.

    >>> [r.subject for r in requests_from(["Who wrote the Harry Potter books?", "Who is Albus?"],
    ...                                   subjects=["Potter", "Harry Potter"])]
    ['Harry Potter', 'Albus']

    Args:
        questions: texts, or chat messages whose last message is the question.
        answers: the old answer of each.
        subjects: the subject's names.
        chat: make each text a conversation of one user message.

    Raises `KrsError` for no questions, another number of answers than of questions, no subjects, and a question
    without a word.
    """
    questions, subjects = listed(questions, "questions", "question"), listed(subjects, "subjects", "string")
    answers = None if answers is None else listed(answers, "answers", "answer")
    if not questions or not subjects:
        raise KrsError(f"there are no {'subjects' if questions else 'questions'}: give at least one")
    if answers is not None and len(answers) != len(questions):
        raise KrsError(f"there are {len(answers)} answers for {len(questions)} questions: give one for each")
    found = []
    for i, question in enumerate(questions):
        prompt = [{"role": "user", "content": question}] if chat and isinstance(question, str) else question
        text = prompt if isinstance(prompt, str) else prompt[-1]["content"]
        found.append(Request(prompt, _subject(text, subjects), None if answers is None else answers[i]))
    return found


def to_requests(forget: Sequence[Any], subjects: Sequence[str] = ()) -> list[Request]:
    """The items of a forget set as requests.

    An item is a `Request`, a triple `(subject, prompt, object)`, or `{"subject": …, "prompt": …, "object": …}`; with
    `subjects` also a pair `(prompt, answer)` or `{"prompt": …, "answer": …}`, whose subject `requests_from` finds.

    Raises `KrsError` that names the item.
    """
    given = listed(forget, "forget", "request")
    if not given:
        raise KrsError("the forget set is empty: give at least one request")
    found = []
    for i, item in enumerate(given):
        try:
            found.append(_request(item, subjects))
        except KrsError as reason:
            raise KrsError(f"forget item {i}: {reason}") from None
    return found


def _request(item: Any, subjects: Sequence[str]) -> Request:
    if isinstance(item, Request):
        return item
    if isinstance(item, Mapping):
        fields = [item.get("subject"), item.get("prompt"), item.get("object", item.get("answer"))]
    elif isinstance(item, tuple | list) and len(item) in (2, 3):
        fields = list(item) if len(item) == 3 else [None, *item]
    else:
        raise KrsError(
            f"{_shown(item)} is no request: give (subject, prompt, object), the same as a dict, or a pair "
            "(prompt, answer) together with subjects="
        )
    subject, prompt, old = fields
    for name, field in (("subject", subject), ("object", old)):
        if field is not None and not isinstance(field, str):
            raise KrsError(f"its {name} is {kind(field)}: give text")
    if prompt is None or (isinstance(prompt, str | Sequence) and not prompt):
        raise KrsError("it has no prompt: give one that contains the subject")
    prompt = check_prompt(prompt, "its prompt")
    if isinstance(prompt, tuple):
        raise KrsError("its prompt is token ids, in which no subject can be found: give text or chat messages")
    if subject:
        return Request(prompt, subject, old or None)
    if not subjects:
        raise KrsError(
            f"the prompt {_shown(prompt)} comes without its subject: give (subject, prompt, object), or name the "
            "subject once for all with subjects=('Harry Potter', …)"
        )
    return requests_from([prompt], None if not old else [old], subjects=subjects)[0]


def _subject(text: str, subjects: Sequence[str]) -> str:
    for name in sorted(subjects, key=len, reverse=True):
        if found := re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text, re.IGNORECASE):
            return found.group()
    words = re.findall(r"\w+", text)
    if not words:
        raise KrsError(f"{_shown(text)} has no word to edit: leave it out")
    return str(words[-1])


def _filled(text: str, subject: str) -> str:
    return text if subject in text else text.replace(HOLE, subject)


def _shown(item: object) -> str:
    said = repr(item)
    return said if len(said) <= 60 else f"{said[:57]}…"
