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
from krs.prompts import Ids, encode
from krs.unlearn.losses import IGNORED

Text: TypeAlias = str | Mapping[str, Any] | tuple[str | Sequence[Message], str]
"""A paragraph; or a prompt with its answer, as a pair or as `{"prompt": …, "answer": …}`. A prompt is text or chat
messages; of a pair only the answer is learnt (or unlearnt), and the EOS after it, unless `"ends": false` says that the
answer was cut off there."""


@dataclass(frozen=True)
class Example:
    """One sequence: its token ids, how many of them at the beginning are only read, whether its end was cut off, and
    whether its prompt went through the chat template."""

    ids: Ids
    n_prompt: int = 0
    cut: bool = False
    chat: bool = False


def to_examples(texts: Sequence[Text], tokenizer: Tokenizer, max_length: int, what: str) -> list[Example]:
    """Tokenise texts, cut to `max_length` tokens.

    Prompt and answer are tokenised apart and then joined, so that the answer's first token is the answer's; an EOS
    ends an answer. Raises `KrsError`, naming the text, for an empty text and for a prompt that leaves no room for
    its answer.
    """
    return [_example(text, tokenizer, max_length, f"{what} text {i}") for i, text in enumerate(texts)]


def _example(text: Text, tokenizer: Tokenizer, max_length: int, where: str) -> Example:
    if isinstance(text, str):
        if not text.strip():
            raise KrsError(f"{where} is empty: remove it")
        whole = tuple(tokenizer(text)["input_ids"])
        ids = whole[:max_length]
        if len(ids) < 2:
            raise KrsError(f"{where} has a single token, so there is nothing to predict: remove it")
        return Example(ids, cut=len(whole) > max_length)
    ends = True
    if isinstance(text, Mapping):
        if missing := {"prompt", "answer"} - text.keys():
            raise KrsError(f"{where} has no {' and no '.join(sorted(missing))}: give both, or a plain string")
        ends = bool(text.get("ends", True))
        text = (text["prompt"], text["answer"])
    prompt, answer = text
    if not answer.strip():
        raise KrsError(f"{where} has an empty answer: remove it")
    (before,) = encode([prompt], tokenizer)
    after = tuple(tokenizer(answer, add_special_tokens=False)["input_ids"])
    end = () if tokenizer.eos_token_id is None or not ends else (int(tokenizer.eos_token_id),)
    whole = before + after + end
    ids = whole[:max_length]
    if len(ids) <= len(before):
        raise KrsError(
            f"{where}: its prompt has {len(before)} tokens and leaves no room for the answer under "
            f"max_length={max_length}: shorten it, or raise max_length"
        )
    return Example(ids, len(before), len(whole) > max_length, chat=not isinstance(prompt, str))


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
