"""Answers that are given: their token ids, and what ends them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

from torch import Tensor

from krs._typing import Tokenizer
from krs.errors import KrsError
from krs.prompts.checks import check_prompt
from krs.prompts.listed import is_whole, listed
from krs.prompts.rows import Ids, check_unpadded, id_rows
from krs.prompts.tokens import rendered
from krs.wording import counted, kind

Answer: TypeAlias = str | Iterable[int] | Tensor
"""Text, or token ids."""

_MARK = "krs"


def end_of_answer(tokenizer: Tokenizer | None, ends: frozenset[int]) -> int | None:
    """What stands behind an answer that is given as text: one of the ids with which the model ends its own.

    The tokenizer's EOS if it is one of them, else the token with which the chat template ends an assistant's turn if
    that is one, else the smallest. A model that names none leaves it to the tokenizer.

    Args:
        tokenizer: of the model.
        ends: the model's ends, `krs.generation.greedy.eos_ids`.
    """
    eos = getattr(tokenizer, "eos_token_id", None)
    if not ends:
        return None if eos is None else int(eos)
    if eos in ends:
        return int(eos)
    turn = _end_of_turn(tokenizer) if tokenizer is not None else ()
    return next((token for token in turn if token in ends), min(ends))


def encode_answers(
    answers: Any,
    prompts: tuple[Ids, ...],
    tokenizer: Tokenizer | None,
    n_tokens: int,
    ends: frozenset[int] = frozenset(),
) -> tuple[Ids, ...]:
    """Token ids of given answers, one a prompt, each cut to `n_tokens`.

    A text is tokenised without special tokens and ends as the model ends its answers (`end_of_answer`); token ids are
    taken as they are, those of a `Generated` too.

    Raises `KrsError` for another number of answers than of prompts, and for an answer that is empty or none, which it
    numbers.
    """
    found = []
    for i, answer in enumerate(_listed(answers)):
        if isinstance(answer, str) and answer.strip() and tokenizer is None:
            raise KrsError("answers= has text, and no tokenizer was found: pass tokenizer=, or token ids")
        found.append(_ids(answer, f"answer {i}", tokenizer, ends))
    if len(found) != len(prompts):
        raise KrsError(
            f"answers= has {counted(len(found), 'answer')} for {counted(len(prompts), 'prompt')}: give one for each"
        )
    check_unpadded(found, ends, "answer", one_may_differ=True)
    pad = getattr(tokenizer, "pad_token_id", None)
    check_unpadded(found, [] if pad is None or pad in ends else [pad], "answer")
    return tuple(ids[:n_tokens] for ids in found)


def _listed(answers: Any) -> list[Any]:
    if isinstance(answers, str):
        return [answers]
    if isinstance(ids := getattr(answers, "token_ids", None), tuple):
        return list(ids)
    rows = id_rows(answers, "answers")
    found: list[Any] = list(rows) if rows is not None else listed(answers, "answers", "answer")
    if found and all(is_whole(a) for a in found):
        raise KrsError("answers is one list of token ids: pass a list of such lists, [ids]")
    return found


def _ids(answer: Any, where: str, tokenizer: Tokenizer | None, ends: frozenset[int]) -> Ids:
    if (isinstance(answer, str) and not answer.strip()) or (isinstance(answer, list | tuple) and not answer):
        raise KrsError(f"{where} is empty: leave its prompt out, or give it an answer")
    if isinstance(answer, Mapping) and "input_ids" not in answer:
        raise KrsError(f"{where} is {kind(answer)}: give text or token ids, such as a message's content")
    checked = check_prompt(answer, where)
    if isinstance(checked, list):
        raise KrsError(f"{where} is chat messages: give the text that is to be scored, messages[-1]['content']")
    if not isinstance(checked, str):
        return checked
    assert tokenizer is not None
    said = tuple(tokenizer(checked, add_special_tokens=False)["input_ids"])
    if not said:
        raise KrsError(f"{where} ({checked!r}) gives no tokens: leave its prompt out, or give it an answer")
    end = end_of_answer(tokenizer, ends)
    return said if end is None or said[-1] == end else (*said, end)


def _end_of_turn(tokenizer: Tokenizer) -> Ids:
    """The tokens that the chat template writes behind an assistant's answer."""
    if not getattr(tokenizer, "chat_template", None):
        return ()
    turns: Any = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": _MARK}]
    try:
        text = rendered(turns, tokenizer, "the end of a turn")
    except KrsError:  # a template that takes no conversation of two messages says nothing about ends
        return ()
    _, mark, behind = text.rpartition(_MARK)
    return tuple(tokenizer(behind, add_special_tokens=False)["input_ids"]) if mark else ()
