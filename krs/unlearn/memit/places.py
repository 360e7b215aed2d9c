"""Where an edit takes place: each request's prompt as token ids, and its subject's last token among them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from krs._typing import Tokenizer
from krs.errors import KrsError
from krs.prompts import Ids, TokenBatch, prompt_length
from krs.prompts.subjects import rendered_with, tokens_over
from krs.unlearn.memit.requests import HOLE, Request


@dataclass(frozen=True)
class Place:
    """A prompt as the model sees it.

    Attributes:
        text: what was tokenised; a chat prompt with its template and the generation prompt.
        ids: its token ids.
        position: the subject's last token.
        chat: whether the template was applied, which brings its own special tokens.
    """

    text: str
    ids: Ids
    position: int
    chat: bool

    def continuation(self, said: str, tokenizer: Tokenizer) -> Ids:
        """The ids of an answer to this prompt, without special tokens.

        After a text its word is set off by a blank; after a chat's template it begins at once. Prompt and answer are
        tokenised together where that leaves the prompt's ids as they are, for a tokenizer may write a blank at the
        beginning of a text in another way than one inside it.
        """
        said = said.lstrip() if self.chat else said
        gap = "" if self.chat or said[:1].isspace() or self.text[-1:].isspace() else " "
        whole = self.text + gap + said
        bare = _is_bare(whole, tokenizer, self.chat)
        joined = _kept(tokenizer(whole, add_special_tokens=not bare)["input_ids"], whole, tokenizer, bare)
        if joined[: len(self.ids)] == self.ids and len(joined) > len(self.ids):
            return joined[len(self.ids) :]
        return tuple(tokenizer(gap + said, add_special_tokens=False)["input_ids"])


@dataclass(frozen=True)
class Sited:
    """A request's prompts, one a context, and the prompt `"{subject} is a"` on which nothing is to change."""

    request: Request
    places: tuple[Place, ...]
    essence: Place


def site(requests: Sequence[Request], contexts: Sequence[str], tokenizer: Tokenizer, max_length: int) -> list[Sited]:
    """Find every request's subject in its prompts.

    Raises `KrsError` for a tokenizer that cannot say which characters a token stands for, for a chat prompt without a
    template, and for a prompt of more than `max_length` tokens.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise KrsError(
            f"{type(tokenizer).__name__} is a slow tokenizer and cannot tell which token is the subject's last: load "
            "the fast one (AutoTokenizer.from_pretrained(…, use_fast=True))"
        )
    found = []
    for request in requests:
        places = tuple(_place(request, context, tokenizer) for context in contexts)
        if (longest := max(len(p.ids) for p in places)) > max_length:
            raise KrsError(
                f"the prompt about {request.subject!r} has {longest} tokens, more than max_length={max_length}: "
                "shorten it, or raise max_length"
            )
        found.append(
            Sited(request, places, _place(Request(f"{request.subject} is a", request.subject), HOLE, tokenizer))
        )
    return found


def _place(request: Request, context: str, tokenizer: Tokenizer) -> Place:
    text = context.replace(HOLE, request.text)
    start = context.index(HOLE) + request.start
    if request.chat:
        text, moved = _rendered(request, text, tokenizer)
        start += moved
    bare = _is_bare(text, tokenizer, request.chat)
    coded = tokenizer(text, add_special_tokens=not bare, return_offsets_mapping=True)
    last = start + len(request.subject) - 1
    covering = tokens_over(coded["offset_mapping"], last, last + 1)
    if not covering:
        raise KrsError(
            f"no token of {text!r} stands for the end of the subject {request.subject!r}: the tokenizer drops it. "
            "Write the subject in another way"
        )
    return Place(text, _kept(coded["input_ids"], text, tokenizer, bare), covering[-1], request.chat)


def _is_bare(text: str, tokenizer: Tokenizer, chat: bool) -> bool:
    """Whether a text brings its special tokens: through the template, or as text that begins with the BOS."""
    bos = getattr(tokenizer, "bos_token", None)
    return chat or bool(bos and text.startswith(bos))


def _kept(ids: Sequence[int], text: str, tokenizer: Tokenizer, bare: bool) -> Ids:
    """The ids without what the tokenizer puts behind a text, such as an EOS."""
    return tuple(ids) if bare else tuple(ids)[: prompt_length(tuple(ids), text, tokenizer)]


def _rendered(request: Request, content: str, tokenizer: Tokenizer) -> tuple[str, int]:
    """The chat as text, and by how many characters the template has moved what stands in `content`."""
    if not getattr(tokenizer, "chat_template", None):
        raise KrsError(
            f"the prompt about {request.subject!r} is chat messages, but the tokenizer has no chat template: give it "
            "as text, or set tokenizer.chat_template"
        )

    assert not isinstance(request.prompt, str)
    where = f"the prompt about {request.subject!r}"
    found = rendered_with(request.prompt, request.carrier, content, tokenizer, where)
    if found is not None:
        return found
    raise KrsError(
        f"the chat template changes the message {content.strip()!r}, so the subject cannot be found in it: give the "
        "prompt as text"
    )


def prompts_batch(places: Sequence[Place]) -> TokenBatch:
    """Prompts alone, their last token scored."""
    ids = tuple(p.ids for p in places)
    return TokenBatch(ids, tuple(map(len, ids)), tuple((len(row) - 1,) for row in ids))


def positions_of(places: Sequence[Place]) -> Int[Tensor, " row"]:
    """The subject's last token in each row."""
    return torch.tensor([p.position for p in places])
