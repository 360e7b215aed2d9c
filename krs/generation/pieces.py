"""Answers as text, piece by piece, while they are said."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

from krs._typing import Tokenizer
from krs.prompts import Ids, decode

INCOMPLETE = "\N{REPLACEMENT CHARACTER}"
"""What half of a character's bytes are decoded as."""


class TextStream:
    """Hands on what a prompt's answer has grown by; a character of several tokens comes when it is whole.

    Args:
        hear: gets the number of the prompt and the new piece.
        tokenizer: decodes the tokens.
    """

    def __init__(self, hear: Callable[[int, str], None], tokenizer: Tokenizer) -> None:
        self._hear = hear
        self._tokenizer = tokenizer
        self._told: dict[int, str] = defaultdict(str)

    def __call__(self, prompt: int, tokens: Ids) -> None:
        """All the tokens that a prompt's answer has so far."""
        text = decode(tokens, self._tokenizer, skip_special_tokens=True)
        if not text.endswith(INCOMPLETE):
            self._tell(prompt, text)

    def finish(self, texts: Sequence[str]) -> None:
        """The whole answers: what has been kept back is handed on."""
        for prompt, text in enumerate(texts):
            self._tell(prompt, text)

    def _tell(self, prompt: int, text: str) -> None:
        if new := text[len(self._told[prompt]) :]:
            self._told[prompt] = text
            self._hear(prompt, new)
