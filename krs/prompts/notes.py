"""What is most likely not meant in a run: said in its notes, and aloud where most of the run is concerned."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from krs._typing import Tokenizer
from krs.errors import KrsWarning
from krs.progress import told
from krs.prompts.checks import is_chat
from krs.prompts.encode import decode
from krs.prompts.rows import Ids
from krs.prompts.tokens import dated, special_tokens

_AS_CHAT = "krs.data.as_chat(questions), or --chat, puts questions through it"


def prompt_notes(
    prompts: Sequence[Any], tokenizer: Tokenizer | None, arguments: Mapping[str, Any] | None = None
) -> list[str]:
    """What stands out in checked prompts: bare text for a chat model, a template that writes today's date."""
    notes = []
    if bare := bare_texts(prompts, tokenizer):
        notes.append(
            f"{bare} of {len(prompts)} prompts are bare text, though the tokenizer has a chat template: a chat model "
            f"answers questions through it ({_AS_CHAT}); text that it is to go on with is right as it is"
        )
    if any(map(is_chat, prompts)) and dated(tokenizer, arguments):
        notes.append(
            "the chat template writes today's date into the prompts, so that tomorrow's are others: fix it with "
            "chat_template_kwargs={'date_string': …}"
        )
    return notes


def answer_notes(
    answers: Sequence[Ids], tokenizer: Tokenizer | None, ends: frozenset[int], bare: int, whose: str
) -> list[str]:
    """How many answers are empty; a `KrsWarning` too where most are.

    Args:
        answers: token ids, ends included.
        tokenizer: to see whether there is any text in them.
        ends: ids that end an answer.
        bare: how many prompts are bare text for a chat model.
        whose: answers, for the message.
    """
    empty = [i for i, answer in enumerate(answers) if not _says_something(answer, tokenizer, ends)]
    if not empty:
        return []
    remedy = f"is the chat template missing? {_AS_CHAT}" if bare else "look at what the model says (krs.generate)"
    note = f"{len(empty)} of {len(answers)} {whose} are empty, the first to prompt {empty[0]}: {remedy}"
    if 2 * len(empty) > len(answers):
        warnings.warn(note, KrsWarning, stacklevel=3)
    return [note]


def bare_texts(prompts: Sequence[Any], tokenizer: Tokenizer | None) -> int:
    """How many prompts are text without a special token, though the tokenizer has a chat template."""
    if not getattr(tokenizer, "chat_template", None):
        return 0
    special = special_tokens(tokenizer)  # type: ignore[arg-type]
    return sum(isinstance(p, str) and not any(token in p for token in special) for p in prompts)


def show(lines: Sequence[str], progress: bool) -> None:
    """Write lines to stderr, above the progress bars; nothing where bars are off."""
    for line in lines if progress else ():
        told(line)


def example(prompt: Ids, answer: Ids, tokenizer: Tokenizer | None) -> str:
    """One scored answer as a line, with the end of its prompt."""
    before, after = (repr(list(ids) if tokenizer is None else decode(ids, tokenizer)) for ids in (prompt[-16:], answer))
    return f"scored, for one: … {before} -> {after}"


def _says_something(answer: Ids, tokenizer: Tokenizer | None, ends: frozenset[int]) -> bool:
    said = [token for token in answer if token not in ends]
    return bool(said) and (tokenizer is None or bool(decode(said, tokenizer, skip_special_tokens=True).strip()))
