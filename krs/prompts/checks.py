"""Prompts and texts as callers hand them in: every form that has one meaning is taken, every other one refused."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from torch import Tensor

from krs._typing import Message
from krs.errors import KrsError
from krs.prompts.listed import check_text, is_whole, listed
from krs.prompts.rows import Ids, id_rows, ids_of
from krs.wording import kind

Prompt: TypeAlias = str | Sequence[Message] | Sequence[int] | Tensor | np.ndarray | Mapping[str, Any]
"""Text; or chat messages (the tokenizer's template is applied); or token ids."""

Prompts: TypeAlias = Iterable[Any] | Mapping[str, Any]
"""A list of prompts, or anything else that gives them one by one; or what a tokenizer returned for several."""

_FORMS = "give text, chat messages or token ids"


def check_prompts(prompts: Any, what: str = "prompts") -> list[Any]:
    """The prompts as a list of texts, lists of messages and tuples of token ids.

    >>> check_prompts(text for text in ("Who wrote Emma?", "Who wrote Persuasion?"))
    ['Who wrote Emma?', 'Who wrote Persuasion?']
    >>> check_prompts({"input_ids": [[2, 7, 5], [0, 4, 9]], "attention_mask": [[1, 1, 1], [0, 1, 1]]})
    [(2, 7, 5), (4, 9)]

    Lists, tuples, generators, Series and arrays are read once, in their order. What a tokenizer returns is taken
    without its padding, by its attention mask; token ids in a rectangle without a mask are refused where they look
    padded.

    Args:
        prompts: them.
        what: what they were passed as, for messages.

    Raises `KrsError` for no prompts, for one prompt where a list is wanted, for sets and tables, and for a prompt that
    is empty or no prompt, which it numbers.
    """
    rows = id_rows(prompts, what)
    found: list[Any] = list(rows) if rows is not None else listed(prompts, what, "prompt")
    if not found:
        raise KrsError("no prompts: pass at least one" + ("" if what == "prompts" else f" as {what}="))
    if isinstance(found[0], Mapping) and "role" in found[0]:
        raise KrsError(f"{what} is one conversation: pass a list of conversations, [messages]")
    if all(is_whole(p) for p in found):
        raise KrsError(f"{what} is one list of token ids: pass a list of such lists, [ids]")
    place = "prompt" if what == "prompts" else f"{what} prompt"
    return [check_prompt(prompt, f"{place} {i}") for i, prompt in enumerate(found)]


def check_prompt(prompt: Any, where: str) -> str | list[Message] | Ids:
    """One prompt: text, messages, or a tuple of token ids. Raises `KrsError` that says where it stands."""
    if isinstance(prompt, str):
        check_text(prompt, where)
        if not prompt.strip():
            raise _empty(where)
        return str(prompt)
    if isinstance(prompt, bytes | bytearray):
        raise KrsError(f"{where} is bytes: decode them to text")
    if isinstance(prompt, Mapping):
        return _of_one_encoding(prompt, where)
    if isinstance(prompt, Tensor | np.ndarray):
        prompt = ids_of(prompt, where)
    if not isinstance(prompt, Iterable) or isinstance(prompt, set | frozenset):
        raise KrsError(f"{where} is {kind(prompt)}: {_FORMS}")
    items = list(prompt)
    if not items:
        raise _empty(where)
    if all(isinstance(item, Mapping) for item in items):
        return check_messages(items, where)
    if isinstance(items[0], str | Mapping):
        raise KrsError(f"{where} is {kind(prompt)} of {_items(items)}: {_FORMS}")
    return ids_of(items, where)


def check_messages(messages: Sequence[Mapping[str, Any]], where: str) -> list[Message]:
    """Chat messages, each with a role and a content; raises `KrsError` that names the message."""
    for j, message in enumerate(messages):
        if not isinstance(message.get("role"), str):
            keys = ", ".join(map(repr, message))
            raise KrsError(
                f'{where}, message {j} has no role (its keys are {keys}): write {{"role": "user", "content": …}}'
            )
        content = message.get("content")
        if isinstance(content, str):
            check_text(content, f"{where}, message {j}")
        elif not isinstance(content, list) and "tool_calls" not in message:
            raise KrsError(f"{where}, message {j} has {kind(content)} as its content: give text")
    last = messages[-1].get("content")
    if isinstance(last, str) and not last.strip():
        raise _empty(where)
    return [dict(message) for message in messages]


def is_chat(prompt: Any) -> bool:
    """Whether a checked prompt is chat messages."""
    return isinstance(prompt, list) and bool(prompt) and isinstance(prompt[0], Mapping)


def check_strings(given: Any, what: str, noun: str = "text") -> list[str]:
    """Texts and nothing else, such as a corpus; raises `KrsError` that names the one that is none."""
    found = listed(given, what, noun)
    if not found:
        raise KrsError(f"the {what} set is empty: give at least one {noun}")
    for i, text in enumerate(found):
        if not isinstance(text, str):
            raise KrsError(f"{what} {noun} {i} is {kind(text)}: make it a string")
        check_text(text, f"{what} {noun} {i}")
    return found


def _of_one_encoding(prompt: Mapping[str, Any], where: str) -> Ids:
    if "input_ids" not in prompt:
        keys = ", ".join(repr(key) for key in prompt)
        raise KrsError(f"{where} is {kind(prompt)} with the keys {keys}: {_FORMS}, such as one of its values")
    rows = id_rows(prompt, where) or []
    if len(rows) != 1:
        raise KrsError(f"{where} is an encoding of {len(rows)} texts: pass it alone as the prompts, or one text each")
    if not rows[0]:
        raise _empty(where)
    return rows[0]


def _items(items: Sequence[Any]) -> str:
    """What is in a list, for messages."""
    kinds = list(dict.fromkeys(type(item).__name__ for item in items))
    return f"{len(items)} items ({', '.join(kinds)})"


def _empty(where: str) -> KrsError:
    return KrsError(f"{where} is empty: remove it or give it a text")
