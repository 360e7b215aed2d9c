"""From one text to token ids, as the model is to read it: one BOS where there is one, and no end."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Mapping
from functools import partial
from typing import Any

from krs._typing import Message, Tokenizer
from krs.errors import KrsError, KrsWarning
from krs.prompts.rows import Ids

_OURS = {"conversation", "tokenize", "add_generation_prompt", "continue_final_message", "return_dict", "chat_template"}


def tokenise(text: str, tokenizer: Tokenizer, keep_end: bool = False) -> Ids:
    """Token ids of a text with the special tokens that the tokenizer puts in front of it.

    What it puts behind is left out, for a model that has read an EOS says something else than after the text; a second
    BOS, in front of a text that has its own, is left out too. Either is warned of.

    Args:
        text: what is to be read.
        tokenizer: whose special tokens are added.
        keep_end: leave what the tokenizer puts behind.
    """
    whole = tuple(tokenizer(text)["input_ids"])
    bare = tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
    start = next((i for i in range(len(whole) - len(bare) + 1) if whole[i : i + len(bare)] == bare), None)
    if start is None or not bare:
        return whole if keep_end else _without_end(whole, bare, tokenizer)
    front, behind = whole[:start], whole[start + len(bare) :]
    bos = getattr(tokenizer, "bos_token_id", None)
    if bos is not None and front[-1:] == bare[:1] == (bos,):
        front = front[:-1]
        _warn(
            f"a text begins with {tokenizer.bos_token!r}, as one does that went through the chat template, and the "
            "tokenizer puts another one in front: krs leaves that one out"
        )
    if behind and not keep_end:
        _warn_of_end(behind, tokenizer)
        behind = ()
    return front + bare + behind


def prompt_length(ids: Ids, text: str, tokenizer: Tokenizer) -> int:
    """How many of the ids that the tokenizer gives a text are left when what it puts behind is left out."""
    bare = tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
    return next((i + len(bare) for i in range(len(ids)) if ids[i : i + len(bare)] == bare), len(ids))


def render(messages: list[Message], tokenizer: Tokenizer, where: str) -> Ids:
    """Token ids of chat messages in the tokenizer's template, the generation prompt added."""
    if not getattr(tokenizer, "chat_template", None):
        raise KrsError(
            f"{where} is chat messages, but the tokenizer has no chat template: give it as text, or set "
            "tokenizer.chat_template"
        )
    if special := rendered_token(messages, tokenizer):
        _warn(
            f"a chat message contains {special!r}, as if it had gone through the chat template already: it goes "
            "through it a second time; pass such prompts as text"
        )
    text = rendered(messages, tokenizer, where, add_generation_prompt=True)
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def rendered(messages: list[Message], tokenizer: Tokenizer, where: str, **options: Any) -> str:
    """Chat messages as the template writes them; raises `KrsError` with the template's reason where it refuses."""
    from jinja2 import TemplateError

    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, **options))
    except TemplateError as reason:
        raise KrsError(f"{where}: the tokenizer's chat template does not take these messages: {reason}") from None


def rendered_token(messages: list[Message], tokenizer: Tokenizer) -> str | None:
    """A special token that stands in a message as text, if there is one."""
    texts = [m["content"] for m in messages if isinstance(m.get("content"), str)]
    return next((t for t in special_tokens(tokenizer) if any(t in text for text in texts)), None)


def special_tokens(tokenizer: Tokenizer) -> list[str]:
    """The tokenizer's special tokens as text."""
    added = getattr(tokenizer, "added_tokens_decoder", None) or {}
    more = [str(token) for token in added.values() if getattr(token, "special", False)]
    return list(dict.fromkeys([*map(str, getattr(tokenizer, "all_special_tokens", ())), *more]))


def check_template_arguments(arguments: Any, used: bool) -> dict[str, Any]:
    """The arguments for the chat template as a dict, an empty one for none.

    Args:
        arguments: such as `{"enable_thinking": False}` or `{"date_string": "26 Jul 2024"}`.
        used: whether there are chat messages that go through the template.

    Raises `KrsError` for what krs sets itself, and where there is nothing to use them for.
    """
    if arguments is None:
        return {}
    if not isinstance(arguments, Mapping) or not all(isinstance(name, str) for name in arguments):
        raise KrsError("chat_template_kwargs= is no dict of names: pass one, such as {'enable_thinking': False}")
    if taken := sorted(_OURS & arguments.keys()):
        raise KrsError(f"chat_template_kwargs= has {taken[0]!r}, which krs sets itself: leave it out")
    if arguments and not used:
        raise KrsError(
            "chat_template_kwargs= is for chat messages, and no prompt is one: leave it out, or pass messages "
            "(krs.data.as_chat(questions), chat=True)"
        )
    return dict(arguments)


def with_template_arguments(tokenizer: Any, arguments: Mapping[str, Any]) -> Any:
    """The tokenizer, its chat template given these arguments; the caller's own stays as it is.

    Raises `KrsError` for arguments that the template does not use: it would pass over them without a word.
    """
    if not arguments or tokenizer is None:
        return tokenizer
    source = _template(tokenizer)
    for name in arguments:
        if not re.search(rf"\b{re.escape(name)}\b", source):
            raise KrsError(
                f"chat_template_kwargs= has {name!r}, which the tokenizer's chat template does not use: look at "
                "tokenizer.chat_template for what it takes"
            )
    bound = copy.copy(tokenizer)
    bound.apply_chat_template = partial(tokenizer.apply_chat_template, **arguments)
    return bound


def dated(tokenizer: Any, arguments: Mapping[str, Any] | None) -> bool:
    """Whether the chat template writes today's date, and no argument fixes it."""
    source = _template(tokenizer)
    return "strftime_now" in source and not any("date" in name for name in arguments or ())


def _template(tokenizer: Any) -> str:
    template = getattr(tokenizer, "chat_template", None)
    return "\n".join(map(str, template.values())) if isinstance(template, dict) else str(template or "")


def _without_end(whole: Ids, bare: Ids, tokenizer: Tokenizer) -> Ids:
    eos = getattr(tokenizer, "eos_token_id", None)
    if eos is None or whole[-1:] != (eos,) or bare[-1:] == (eos,):
        return whole
    _warn_of_end(whole[-1:], tokenizer)
    return whole[:-1]


def _warn_of_end(ids: Ids, tokenizer: Tokenizer) -> None:
    said = str(tokenizer.decode(list(ids)))
    _warn(f"the tokenizer puts {said!r} behind a text; krs leaves it out of prompts, after which the model is to go on")


def _warn(message: str) -> None:
    warnings.warn(message, KrsWarning, stacklevel=2)
