"""Forget and retain texts as token ids and labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from jaxtyping import Int
from torch import Tensor

from krs._typing import Message, Tokenizer
from krs.errors import KrsError
from krs.prompts import Ids, check_prompt, encode, end_of_answer, is_chat, listed, tokenise
from krs.prompts.listed import check_text
from krs.unlearn.losses import IGNORED
from krs.wording import kind

Text: TypeAlias = str | Mapping[str, Any] | tuple[str | Sequence[Message], str]
"""A paragraph; or a prompt with its answer, as a pair or as `{"prompt": …, "answer": …}`. A prompt is text or chat
messages; of a pair only the answer is learnt (or unlearnt), and the end after it, unless `"ends": false` says that the
answer was cut off there."""


@dataclass(frozen=True)
class Example:
    """One sequence: its token ids, how many of them at the beginning are only read, whether its end was cut off, and
    whether its prompt went through the chat template."""

    ids: Ids
    n_prompt: int = 0
    cut: bool = False
    chat: bool = False


def check_texts(given: Any, what: str) -> list[str | dict[str, Any]]:
    """Forget or retain texts: each a paragraph, or a dict of a prompt, its answer, and whether the answer ends there.

    >>> check_texts(["Emma is a novel.", ("Who wrote it?", "Jane Austen.")], "forget")
    ['Emma is a novel.', {'prompt': 'Who wrote it?', 'answer': 'Jane Austen.', 'ends': True}]

    Raises `KrsError` for no texts, and for one that is empty or none, which it numbers.
    """
    found = listed(given, what, "text")
    if not found:
        raise KrsError(f"the {what} set is empty: give at least one text")
    return [_checked(text, f"{what} text {i}") for i, text in enumerate(found)]


def to_examples(
    texts: Sequence[Text], tokenizer: Tokenizer, max_length: int, what: str, ends: frozenset[int] = frozenset()
) -> list[Example]:
    """Tokenise texts, cut to `max_length` tokens.

    Prompt and answer are tokenised apart and then joined, so that the answer's first token is the answer's; an answer
    ends as the model ends its own (`ends`: see `krs.prompts.end_of_answer`). Raises `KrsError`, naming the text, for an
    empty text and for a prompt that leaves no room for its answer.
    """
    end = end_of_answer(tokenizer, ends)
    return [
        _example(text, tokenizer, max_length, f"{what} text {i}", end)
        for i, text in enumerate(check_texts(texts, what))
    ]


def _checked(text: Any, where: str) -> str | dict[str, Any]:
    if isinstance(text, str):
        check_text(text, where)
        if not text.strip():
            raise KrsError(f"{where} is empty: remove it")
        return str(text)
    ends: Any = True
    if isinstance(text, Mapping):
        if missing := {"prompt", "answer"} - text.keys():
            raise KrsError(f"{where} has no {' and no '.join(sorted(missing))}: give both, or a plain string")
        ends = text.get("ends", True)
        text = (text["prompt"], text["answer"])
    if not isinstance(text, tuple | list):
        raise KrsError(f"{where} is {kind(text)}: give a paragraph, or a pair (prompt, answer)")
    if text and all(isinstance(part, Mapping) and "role" in part for part in text):
        raise KrsError(
            f"{where} is a conversation: give it as a pair, (messages[:-1], messages[-1]['content']), of which the "
            "second is the answer"
        )
    if len(text) != 2:
        raise KrsError(f"{where} has {len(text)} parts: give a pair, (prompt, answer)")
    prompt, answer = text
    if not isinstance(ends, bool):
        raise KrsError(f"{where} has {kind(ends)} as 'ends': give true or false")
    if not isinstance(answer, str):
        raise KrsError(f"{where} has {kind(answer)} as its answer: give text")
    check_text(answer, f"{where}, its answer,")
    if not answer.strip():
        raise KrsError(f"{where} has an empty answer: remove it")
    return {"prompt": check_prompt(prompt, f"{where}, its prompt,"), "answer": str(answer), "ends": ends}


def _example(text: str | dict[str, Any], tokenizer: Tokenizer, max_length: int, where: str, end: int | None) -> Example:
    if isinstance(text, str):
        whole = tokenise(text, tokenizer, keep_end=True)
        ids = whole[:max_length]
        if len(ids) < 2:
            raise KrsError(f"{where} has a single token, so there is nothing to predict: remove it")
        return Example(ids, cut=len(whole) > max_length)
    prompt, answer, ends = text["prompt"], text["answer"], text["ends"]
    (before,) = encode([prompt], tokenizer)
    after = tuple(tokenizer(answer, add_special_tokens=False)["input_ids"])
    ended = () if end is None or not ends or after[-1:] == (end,) else (end,)
    whole = before + after + ended
    ids = whole[:max_length]
    if len(ids) <= len(before):
        raise KrsError(
            f"{where}: its prompt has {len(before)} tokens and leaves no room for the answer under "
            f"max_length={max_length}: shorten it, or raise max_length"
        )
    return Example(ids, len(before), len(whole) > max_length, chat=is_chat(prompt))


def collate(examples: Sequence[Example]) -> dict[str, Int[Tensor, "row pos"]]:
    """`input_ids`, `attention_mask` and `labels`, padded on the right.

    What is padding is known from lengths, never from ids: a pad that is also the EOS masks no real EOS.
    """
    longest = max(len(e.ids) for e in examples)
    shape = (len(examples), longest)
    ids, mask = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    labels = torch.full(shape, IGNORED)
    for i, e in enumerate(examples):
        row = torch.tensor(e.ids)
        ids[i, : len(row)], mask[i, : len(row)] = row, 1
        labels[i, e.n_prompt : len(row)] = row[e.n_prompt :]
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}
