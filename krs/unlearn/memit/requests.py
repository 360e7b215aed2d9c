"""What an edit is asked to forget: a prompt, the subject in it, and the old answer."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from krs._typing import Message
from krs.errors import KrsError
from krs.prompts import check_prompt, listed
from krs.prompts.listed import whole
from krs.prompts.words import last_word, longer_word, whole_words
from krs.wording import counted, kind

HOLE = "{}"
"""Stands for the subject in a prompt, and for the prompt in a context."""

Question: TypeAlias = str | Sequence[Message]


@dataclass(frozen=True)
class Request:
    """One fact to forget.

    >>> Request("The {} sails in", "Hogwarts Express", None).text
    'The Hogwarts Express sails in'
    >>> Request("Why do Parisians love Paris?", "Paris").start
    22

    Attributes:
        prompt: text, or chat messages; the subject occurs in it as words of its own, or `{}` stands for it.
        subject: what the fact is about.
        object: the old answer. No objective uses it: its likelihood before and after is logged.
        occurrence: which occurrence of the subject counts, in the last message that has it: 0 is the first, -1 the
            last. Longer words that contain the subject are none.
    """

    prompt: Question
    subject: str
    object: str | None = None
    occurrence: int = 0

    def __post_init__(self) -> None:
        if not self.subject.strip() or self.subject != self.subject.strip():
            raise KrsError(f"the subject {self.subject!r} is empty or has blanks around it: give the words alone")
        if not isinstance(self.prompt, str) and not self.prompt:
            raise KrsError(f"the request about {self.subject!r} has no messages: give at least one")
        if any(not isinstance(text, str) for text in self._texts()):
            raise KrsError(
                f"the request about {self.subject!r} has a message whose content is no text: give text alone"
            )
        for text in self._texts():
            if HOLE in text and whole_words(text, self.subject):
                raise KrsError(
                    f"the prompt {_shown(text)} holds both the subject {self.subject!r} and {{}}, which stands for it: "
                    "keep one of them"
                )
        if not any(self._starts(text) for text in self._texts()):
            raise KrsError(self._missing())
        if not -self._n_occurrences <= self.occurrence < self._n_occurrences:
            raise KrsError(
                f"occurrence={self.occurrence}: give a number from {-self._n_occurrences} to {self._n_occurrences - 1} "
                f"for the subject {self.subject!r} of {_shown(self.text)}"
            )

    @property
    def chat(self) -> bool:
        """Whether the prompt is chat messages."""
        return not isinstance(self.prompt, str)

    @property
    def carrier(self) -> int:
        """Which message has the subject: the last one that does; 0 for a text."""
        return max(i for i, text in enumerate(self._texts()) if self._starts(text))

    @property
    def text(self) -> str:
        """The text, or the message, that has the subject, with the subject in its place."""
        return self._texts()[self.carrier].replace(HOLE, self.subject) if self._hole else self._texts()[self.carrier]

    @property
    def start(self) -> int:
        """At which character of `text` the subject begins."""
        return self._starts(self._texts()[self.carrier])[self.occurrence]

    @property
    def _hole(self) -> bool:
        return not whole_words(self._texts()[self.carrier], self.subject)

    @property
    def _n_occurrences(self) -> int:
        return len(self._starts(self._texts()[self.carrier]))

    def _starts(self, text: str) -> list[int]:
        """Where the subject begins in a text, once it has taken the place of every `{}`."""
        if found := whole_words(text, self.subject):
            return found
        more = len(self.subject) - len(HOLE)
        return [m.start() + i * more for i, m in enumerate(re.finditer(re.escape(HOLE), text))]

    def _texts(self) -> list[str]:
        return [self.prompt] if isinstance(self.prompt, str) else [m["content"] for m in self.prompt]

    def _missing(self) -> str:
        longer = [word for text in self._texts() if (word := longer_word(text, self.subject))]
        if longer:
            return (
                f"the subject {self.subject!r} is only a part of a word, {longer[0]!r}, in the prompt {self.prompt!r}: "
                "give the whole word, or put {} where the subject is meant"
            )
        return (
            f"the subject {self.subject!r} does not occur in the prompt {self.prompt!r}: write it as it stands "
            "there, or put {} in its place"
        )


def requests_from(
    questions: Sequence[Question],
    answers: Sequence[str] | None = None,
    *,
    subjects: Sequence[str],
    chat: bool = False,
) -> list[Request]:
    """Requests from questions: the subject of each is the first of `subjects` that is found in it.

    Longer ones are looked for first, as whole words, in any case. A question in which none occurs gets its last word
    as the subject (its last occurrence), so that what it says up to there is what is edited.

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
        raise KrsError(
            f"{counted(len(answers), 'answer')} for {counted(len(questions), 'question')}: give one for each"
        )
    found = []
    for i, question in enumerate(questions):
        prompt = [{"role": "user", "content": question}] if chat and isinstance(question, str) else question
        text = prompt if isinstance(prompt, str) else prompt[-1]["content"]
        subject, occurrence = _subject(text, subjects)
        found.append(Request(prompt, subject, None if answers is None else answers[i], occurrence))
    return found


def to_requests(forget: Sequence[Any], subjects: Sequence[str] = ()) -> list[Request]:
    """The items of a forget set as requests.

    An item is a `Request`, a triple `(subject, prompt, object)`, or `{"subject": …, "prompt": …, "object": …}` (and
    `"occurrence"`); with
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
    occurrence = whole(item.get("occurrence", 0), "occurrence") if isinstance(item, Mapping) else 0
    if prompt is None or (isinstance(prompt, str | Sequence) and not prompt):
        raise KrsError("it has no prompt: give one that contains the subject")
    prompt = check_prompt(prompt, "its prompt")
    if isinstance(prompt, tuple):
        raise KrsError("its prompt is token ids, in which no subject can be found: give text or chat messages")
    if subject:
        return Request(prompt, subject, old or None, occurrence)
    if not subjects:
        raise KrsError(
            f"the prompt {_shown(prompt)} comes without its subject: give (subject, prompt, object), or name the "
            "subject once for all with subjects=('Harry Potter', …)"
        )
    return requests_from([prompt], None if not old else [old], subjects=subjects)[0]


def _subject(text: str, subjects: Sequence[str]) -> tuple[str, int]:
    """The subject as the question spells it, and which occurrence of it counts."""
    for name in sorted(subjects, key=len, reverse=True):
        if starts := whole_words(text, name, ignore_case=True):
            return text[starts[0] : starts[0] + len(name)], 0
    last = last_word(text)
    if last is None:
        raise KrsError(f"{_shown(text)} has no word to edit: leave it out")
    return last, -1


def _shown(item: object) -> str:
    said = repr(item)
    return said if len(said) <= 60 else f"{said[:57]}…"
