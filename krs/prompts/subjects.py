"""Which of a prompt's tokens are its subject, such as "Harry Potter" in "Who wrote the Harry Potter books?"."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from krs._typing import Message, Tokenizer
from krs.errors import KrsError
from krs.prompts.checks import check_strings, is_chat
from krs.prompts.rows import Ids
from krs.prompts.tokens import rendered
from krs.prompts.words import longer_word, whole_words
from krs.wording import counted

SUBJECT = ("subject", "last_subject")
"""What positions may be called that are those of the subject: all its tokens, or the last of them."""

_MARK = "krsmark"


def check_subjects(subjects: Any, positions: Any, prompts: Sequence[Any]) -> tuple[str, ...] | None:
    """The subjects, one a prompt; `None` where positions are not theirs.

    Raises `KrsError` where one is given without the other, for another number of subjects than of prompts, for prompts
    of token ids, and for a subject that is not in its prompt.
    """
    asked = isinstance(positions, str) and positions in SUBJECT
    if subjects is None and not asked:
        return None
    if subjects is None:
        raise KrsError(f"positions={positions!r} needs to know the subject of each prompt: pass subjects, one a prompt")
    if not asked:
        raise KrsError(f"subjects are given, and positions={positions!r} uses none: say 'subject', or leave them out")
    found = tuple(check_strings(subjects, "subjects", "text"))
    if len(found) != len(prompts):
        raise KrsError(
            f"there are {counted(len(found), 'subject')} for {counted(len(prompts), 'prompt')}: give one for each"
        )
    for i, (prompt, subject) in enumerate(zip(prompts, found, strict=True)):
        _occurrence(i, prompt, subject)
    return found


def subject_positions(
    prompts: Sequence[Any], ids: Sequence[Ids], subjects: Sequence[str], tokenizer: Tokenizer, positions: str
) -> tuple[Ids, ...]:
    """Of each prompt the positions of its subject's tokens, or of the last of these.

    The subject's last mention counts that no longer word contains; in chat messages, in the last message that has one.

    Args:
        prompts: texts, or chat messages.
        ids: the same as token ids, as `encode` makes them.
        subjects: one a prompt.
        tokenizer: a fast one, which says which characters a token stands for.
        positions: `"subject"` for all of its tokens, `"last_subject"` for the last one.

    Raises `KrsError` for a slow tokenizer, and where no token stands for the subject.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise KrsError(
            f"{type(tokenizer).__name__} is a slow tokenizer and cannot tell which tokens are a subject's: load the "
            "fast one (AutoTokenizer.from_pretrained(…, use_fast=True)), or give positions= as lists of indices"
        )
    found = []
    for i, (prompt, row, subject) in enumerate(zip(prompts, ids, subjects, strict=True)):
        text, start = _text(i, prompt, subject, tokenizer)
        tokens = _covering(text, row, start, start + len(subject), tokenizer)
        if not tokens:
            raise KrsError(f"prompt {i}: no token is the subject {subject!r}'s: give positions= as lists of indices")
        found.append(tokens[-1:] if positions == "last_subject" else tokens)
    return tuple(found)


def tokens_over(offsets: Sequence[tuple[int, int]], start: int, end: int) -> Ids:
    """Which tokens stand for any of the characters `start … end-1`, by a fast tokenizer's offsets.

    >>> tokens_over([(0, 3), (3, 7), (7, 9)], 4, 8)
    (1, 2)
    """
    return tuple(i for i, (a, b) in enumerate(offsets) if a < end and start < b)


def rendered_with(
    messages: Sequence[Message], carrier: int, content: str, tokenizer: Tokenizer, where: str
) -> tuple[str, int] | None:
    """A chat as text with this content in one message, and by how many characters the template has moved it.

    Where the template puts the message is seen from a mark in its place: the words of the message may occur in a
    system prompt, in other messages, and in what the template itself says. `None` for a template that changes the
    message.
    """

    def chat(said: str) -> str:
        told = [dict(m) for m in messages]
        told[carrier]["content"] = said
        return rendered(told, tokenizer, where, add_generation_prompt=True)

    text, (before, mark, after) = chat(content), chat(_MARK).partition(_MARK)
    for inside in (content, content.strip()):
        if mark and text == before + inside + after:
            return text, len(before) - content.index(inside)
    return None


def _covering(text: str, ids: Ids, start: int, end: int, tokenizer: Tokenizer) -> Ids:
    """Which of `ids`, those of `text`, stand for any of the characters `start … end-1`."""
    coded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    front = len(ids) - len(coded["input_ids"])
    if front < 0 or ids[front:] != tuple(coded["input_ids"]):  # it begins otherwise where special tokens are added
        coded, front = tokenizer(text, return_offsets_mapping=True), 0
        if tuple(coded["input_ids"])[: len(ids)] != ids:
            return ()
    return tuple(front + i for i in tokens_over(coded["offset_mapping"], start, end))


def _text(i: int, prompt: Any, subject: str, tokenizer: Tokenizer) -> tuple[str, int]:
    """What is tokenised, and where the subject begins in it."""
    carrier, start = _occurrence(i, prompt, subject)
    if isinstance(prompt, str):
        return prompt, start
    found = rendered_with(prompt, carrier, prompt[carrier]["content"], tokenizer, f"prompt {i}")
    if found is not None:
        return found[0], found[1] + start
    raise KrsError(
        f"prompt {i}: the chat template changes the message with the subject {subject!r}, whose tokens cannot be "
        "found: give the prompt as text, or positions= as lists of indices"
    )


def _occurrence(i: int, prompt: Any, subject: str) -> tuple[int, int]:
    """Which message has the subject (0 for a text), and where it begins there."""
    if not isinstance(prompt, str) and not is_chat(prompt):
        raise KrsError(f"prompt {i} is token ids, in which no subject can be found: give positions= as lists")
    texts = [prompt] if isinstance(prompt, str) else [m["content"] for m in prompt]
    for n, text in reversed(list(enumerate(texts))):
        if starts := whole_words(text, subject):
            return n, starts[-1]
    longer = next((word for text in texts if (word := longer_word(text, subject))), None)
    why = "does not occur in it" if longer is None else f"is there only as a part of the word {longer!r}"
    raise KrsError(f"prompt {i}: the subject {subject!r} {why}: write it as it stands in the prompt")
