"""From prompts to token ids, and back."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

from krs._typing import Tokenizer
from krs.errors import KrsError, KrsWarning
from krs.prompts.checks import Prompts, check_prompts, is_chat
from krs.prompts.rows import Ids, check_unpadded
from krs.prompts.tokens import render, tokenise


def needs_tokenizer(prompts: Sequence[Any]) -> bool:
    """Whether any checked prompt is text or chat messages."""
    return any(isinstance(p, str) or is_chat(p) for p in prompts)


def encode(
    prompts: Prompts, tokenizer: Tokenizer | None, *, pads: Iterable[int] = (), ends: Iterable[int] = ()
) -> tuple[Ids, ...]:
    """Token ids of each prompt, without padding.

    Text gets the special tokens that the tokenizer puts in front by itself (a BOS for Llama, one), and none behind;
    chat messages go through its template with the generation prompt added. Token ids are taken as they are.

    Args:
        prompts: as `check_prompts` takes them.
        tokenizer: for text and messages.
        pads: ids that the model pads with; the tokenizer's own pad is known.
        ends: ids that end the model's answers.

    Raises `KrsError` for prompts that are none, and for token ids that look padded; warns of such that end with an end
    or begin with two BOS.
    """
    checked = check_prompts(prompts)
    found = tuple(_encode_one(f"prompt {i}", prompt, tokenizer) for i, prompt in enumerate(checked))
    given = [ids for ids, prompt in zip(found, checked, strict=True) if not isinstance(prompt, str | list)]
    ours = getattr(tokenizer, "pad_token_id", None)
    check_unpadded(given, [*pads] if ours is None else [*pads, ours], "token-id prompt")
    _look_at_ids(given, tokenizer, frozenset(ends))
    return found


def decode(ids: Sequence[int], tokenizer: Tokenizer, skip_special_tokens: bool = False) -> str:
    """The text of token ids."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens))


def pieces(prompts: Sequence[Ids], answers: Sequence[Ids], tokenizer: Tokenizer) -> tuple[tuple[str, ...], ...]:
    """Each prompt with its answer as text, a string a token."""
    known: dict[int, str] = {}

    def text(token: int) -> str:
        return known[token] if token in known else known.setdefault(token, decode([token], tokenizer))

    return tuple(tuple(map(text, p + a)) for p, a in zip(prompts, answers, strict=True))


def _encode_one(where: str, prompt: Any, tokenizer: Tokenizer | None) -> Ids:
    if not needs_tokenizer([prompt]):
        return tuple(prompt)
    if tokenizer is None:
        raise KrsError(
            "no tokenizer was found beside the model: pass tokenizer=AutoTokenizer.from_pretrained(…), or give the "
            "prompts as lists of token ids"
        )
    ids = tokenise(prompt, tokenizer) if isinstance(prompt, str) else render(prompt, tokenizer, where)
    if not ids:
        raise KrsError(f"{where} ({prompt!r}) gives no tokens: remove it or give it a text")
    return ids


def _look_at_ids(given: Sequence[Ids], tokenizer: Tokenizer | None, ends: frozenset[int]) -> None:
    """Token ids are the caller's; what is most likely not meant in them is warned of."""
    bos, eos = (getattr(tokenizer, name, None) for name in ("bos_token_id", "eos_token_id"))
    if bos is not None and any(ids[:2] == (bos, bos) for ids in given):
        warnings.warn(
            "a prompt of token ids begins with two BOS, as one does that was tokenised after the chat template: krs "
            "takes ids as they are; tokenise such text with add_special_tokens=False",
            KrsWarning,
            stacklevel=3,
        )
    if any(len(ids) > 1 and ids[-1] in (ends | {eos}) for ids in given):
        warnings.warn(
            "a prompt of token ids ends with an end-of-text token, after which the model says something else than "
            "after the prompt: krs takes ids as they are; leave that token out",
            KrsWarning,
            stacklevel=3,
        )
