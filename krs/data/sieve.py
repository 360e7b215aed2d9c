"""Which lines of JSON may mention a concept, told from their bytes, so that the others need not be parsed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8

from krs.data.mentions import Mentions, spellings

_CASE_BIT = 0x20
_RAREST_FIRST = "zqjxkvbpygfwmucldrhsnioate"
_OFTEN_ESCAPED = "\"'/\\-"
_SPACES = [char for char in map(chr, range(0x3001)) if char.isspace()]


@dataclass(frozen=True)
class Sieve:
    """Lines through which a mention cannot slip, however JSON has escaped it.

    >>> sieve = Sieve(Mentions(("Harry Potter",)))
    >>> sieve.may_mention(b'{"text": "HARRY\\\\n\\\\u0050otter"}')
    True
    >>> sieve.may_mention(b'{"text": "Harry met Mr Potter"}')
    False

    `candidates` looks at a block of many lines at once and is content with the rarest letters of a piece of each name;
    `may_mention` looks at one line and wants the whole name.
    """

    mentions: Mentions

    def may_mention(self, line: bytes) -> bool:
        """`False` only if the text of this line of JSON cannot mention the concept."""
        if self.mentions.ignore_case:
            line = line.lower()
        if self._unescaped.search(line):
            return True
        return b"\\u00" in line and self._escaped.search(line) is not None

    def candidates(self, block: UInt8[np.ndarray, " bytes"]) -> Int64[np.ndarray, " hits"] | None:
        """Positions in all lines that may mention the concept, and in some that do not; `None`: look at each line."""
        anchors = self.mentions.anchors
        if not anchors:
            return None
        folded = block | _CASE_BIT if self.mentions.ignore_case else block
        hits = [_positions(folded, self._folded(anchor)) for anchor in anchors]
        escapes = _positions(block, b"\\u00")
        if len(escapes):
            escapes = escapes[escapes < len(block) - 5]
            code = (block[escapes + 4].astype(np.int64) << 8 | block[escapes + 5]) | (_CASE_BIT << 8 | _CASE_BIT)
            hits.append(escapes[np.isin(code, self._escapable)])
        return np.concatenate(hits)

    def _folded(self, piece: str) -> bytes:
        raw = piece.encode("ascii")
        return bytes(byte | _CASE_BIT for byte in raw) if self.mentions.ignore_case else raw

    @cached_property
    def _escapable(self) -> Any:
        """The two hexadecimal digits behind `\\u00` that stand for a character of an anchor."""
        chars = {s for piece in self.mentions.anchors for c in piece for s in spellings(c, self.mentions.ignore_case)}
        pairs = [f"{ord(char):02x}".encode() for char in sorted(chars)]
        return np.array([(high | _CASE_BIT) << 8 | low | _CASE_BIT for high, low in pairs], np.int64)

    @cached_property
    def _unescaped(self) -> re.Pattern[bytes]:
        """The names where every character that JSON need not escape stands for itself: it begins with a literal."""
        return self._pattern(escapes=False)

    @cached_property
    def _escaped(self) -> re.Pattern[bytes]:
        return self._pattern(escapes=True)

    def _pattern(self, escapes: bool) -> re.Pattern[bytes]:
        return re.compile(b"|".join(self._name(name, escapes) for name in self.mentions.by_length))

    def _name(self, name: str, escapes: bool) -> bytes:
        space = _any_of([form for char in _SPACES for form in self._forms(char, escapes)]) + b"+"
        return b"".join(space if char == " " else self._char(char, escapes) for char in name)

    def _char(self, char: str, escapes: bool) -> bytes:
        written = [
            b"".join(_any_of([*self._forms(c, escapes)]) for c in spelling)
            for spelling in spellings(char, self.mentions.ignore_case)
        ]
        return _any_of(written)

    def _forms(self, char: str, escapes: bool) -> Iterator[bytes]:
        """What may stand for a character in a line: itself, `\\"` and its like, `\\u0048`."""
        raw = char.encode("utf-8", "surrogatepass")
        yield re.escape(raw.lower() if self.mentions.ignore_case else raw)
        if char.isascii():
            yield re.escape(b"\\/" if char == "/" else json.dumps(char)[1:-1].encode())
        if escapes or not char.isascii() or not char.isprintable() or char in _OFTEN_ESCAPED:
            yield b"".join(rb"\\u" + _hexadecimal(unit) for unit in _utf16(char))


def _positions(block: UInt8[np.ndarray, " bytes"], piece: bytes) -> Int64[np.ndarray, " hits"]:
    """Where these bytes stand: first where the two rarest of them do, then which of those places have the others."""
    room = len(block) - len(piece) + 1
    if room <= 0:
        return np.zeros(0, np.int64)
    order = sorted(range(len(piece)), key=lambda i: _RAREST_FIRST.find(chr(piece[i] | _CASE_BIT)))
    here = block[order[0] : order[0] + room] == piece[order[0]]
    here &= block[order[1] : order[1] + room] == piece[order[1]]
    found = np.flatnonzero(here)
    for i in order[2:]:
        found = found[block[found + i] == piece[i]]
    return found


def _any_of(choices: list[bytes]) -> bytes:
    choices = list(dict.fromkeys(choices))
    return choices[0] if len(choices) == 1 else b"(?:" + b"|".join(choices) + b")"


def _utf16(char: str) -> list[str]:
    raw = char.encode("utf-16-be", "surrogatepass")
    return [raw[i : i + 2].hex() for i in range(0, len(raw), 2)]


def _hexadecimal(digits: str) -> bytes:
    return "".join(f"[{d}{d.upper()}]" if d.isalpha() else d for d in digits).encode()
