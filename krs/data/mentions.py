"""Where a text mentions a concept: names as patterns, and the paragraphs of a document."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from typing import NamedTuple

from krs.errors import KrsError

_SAME = ("'\u2019\u02bc", "-\u2010\u2011")
_ASCII_APART = r"[\x00-/:-@\[-^`{-\x7f]"
_BETWEEN_BLOCKS = re.compile(r"\n\s*\n")
_BETWEEN_LINES = re.compile(r"\n")


class Mention(NamedTuple):
    """A name in a text: which of the names, and from which character to which."""

    alias: str
    start: int
    end: int


@dataclass(frozen=True)
class Mentions:
    """The names of a concept, and when a text mentions one of them.

    White space within a name stands for any white space, line breaks included. `'` stands for the typographic
    apostrophes too, `-` for the Unicode hyphens, an accented letter for its composed and its decomposed form.

    >>> names = Mentions(("Harry Potter", "C++", "McDonald's"))
    >>> names.first("Is HARRY  POTTER's owl here?")
    Mention(alias='Harry Potter', start=3, end=16)
    >>> names.first("Harry Potterson eats at McDonald’s.").alias
    "McDonald's"

    Attributes:
        names: the concept and its aliases; where several match at the same place, the longest is meant.
        ignore_case: a letter stands for its upper and lower case; those of ASCII for those of ASCII only (so `k`
            is not the Kelvin sign).
        whole_word: where a name begins or ends with a word character, no other may stand next to it. Word characters
            are letters, digits, marks, joiners and connectors such as `_`, in all scripts (Unicode's UTS 18).
    """

    names: tuple[str, ...]
    ignore_case: bool = True
    whole_word: bool = True

    @staticmethod
    def of(concept: str, aliases: tuple[str, ...], ignore_case: bool, whole_word: bool) -> Mentions:
        """Names without white space around them, each once; raises `KrsError` for an empty one."""
        names = []
        for given, what in [(concept, "concept"), *((alias, "an alias") for alias in aliases)]:
            name = " ".join(unicodedata.normalize("NFC", given).split())
            if not name:
                raise KrsError(f"{what} is empty: give the name to look for, such as 'Harry Potter'")
            names.append(name)
        return Mentions(tuple(dict.fromkeys(names)), ignore_case, whole_word)

    @cached_property
    def by_length(self) -> tuple[str, ...]:
        """The names, longest first."""
        return tuple(sorted(self.names, key=lambda name: (-len(name), name)))

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile("|".join(f"({self._one(name)})" for name in self.by_length), re.DOTALL)

    def _one(self, name: str) -> str:
        pieces = [r"\s+" if char == " " else _any_of(spellings(char, self.ignore_case)) for char in name]
        word = f"[{_word_characters()}]"
        if self.whole_word and re.match(word, name[0]):
            pieces[0] = _any_of(spellings(name[0], self.ignore_case), begins_word=True)
        if self.whole_word and re.match(word, name[-1]):
            pieces.append(f"(?!{word})")
        return "".join(pieces)

    def first(self, text: str) -> Mention | None:
        """The leftmost mention, or none."""
        found = self._pattern.search(text)
        if found is None:
            return None
        return Mention(self.by_length[(found.lastindex or 1) - 1], found.start(), found.end())

    @cached_property
    def anchors(self) -> tuple[str, ...]:
        """For each name a piece that is spelt one way only, but for case; none if some name has no such piece."""
        longest = [max(re.findall(r"""[!#-&(-,.0-\[\]-~]+""", name) or [""], key=len) for name in self.names]
        return tuple(dict.fromkeys(longest)) if all(len(piece) > 1 for piece in longest) else ()

    def may_be_in(self, text: str) -> bool:
        """`False` only if there is no mention; much faster than looking for one."""
        if self.ignore_case:
            text = text.lower()
        return not self._wanted or any(piece in text for piece in self._wanted)

    @cached_property
    def _wanted(self) -> tuple[str, ...]:
        return tuple(piece.lower() for piece in self.anchors) if self.ignore_case else self.anchors


def spellings(char: str, ignore_case: bool) -> list[str]:
    """Every way in which a character of a name may be written, in a fixed order.

    >>> spellings("é", ignore_case=True) == ["É", "é", "E\\u0301", "e\\u0301"]
    True
    """
    chars = next((same for same in _SAME if char in same), char)
    if ignore_case:
        chars = "".join(_cases(char) for char in chars)
    decomposed = [unicodedata.normalize("NFD", char) for char in chars]
    return list(dict.fromkeys([*chars, *decomposed]))


def paragraphs(text: str, max_chars: int) -> Iterator[tuple[int, int]]:
    """Where the paragraphs of a document begin and end, in characters, without white space around them.

    Blank lines part paragraphs. Without any blank line, and within a block of more than `max_chars` characters, each
    line is one.

    >>> list(paragraphs("A title\\n\\nFirst line,\\nsecond line.", max_chars=100))
    [(0, 7), (9, 33)]
    >>> list(paragraphs("A title\\nFirst line,\\nsecond line.", max_chars=100))
    [(0, 7), (8, 19), (20, 32)]
    """
    blocks = list(_pieces(text, 0, len(text), _BETWEEN_BLOCKS))
    for start, end in blocks:
        if len(blocks) == 1 or end - start > max_chars:
            yield from _pieces(text, start, end, _BETWEEN_LINES)
        else:
            yield start, end


def _pieces(text: str, start: int, end: int, between: re.Pattern[str]) -> Iterator[tuple[int, int]]:
    for found in between.finditer(text, start, end):
        yield from _stripped(text, start, found.start())
        start = found.end()
    yield from _stripped(text, start, end)


def _stripped(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    piece = text[start:end]
    start += len(piece) - len(piece.lstrip())
    end -= len(piece) - len(piece.rstrip())
    if start < end:
        yield start, end


def _any_of(choices: list[str], begins_word: bool = False) -> str:
    """One of these; that none stands within a word is checked behind it, as searches for a letter are the fast ones."""
    written = [re.escape(choice) + (_begins_word(len(choice)) if begins_word else "") for choice in choices]
    return written[0] if len(written) == 1 else f"(?:{'|'.join(written)})"


def _begins_word(back: int) -> str:
    """No word character so many characters back; most often ASCII says so already, and the long class is not tried."""
    there = "." * back
    return f"(?>(?<={_ASCII_APART}{there})|(?<![{_word_characters()}]{there}))"


@cache
def _cases(char: str) -> str:
    if char.isascii():
        return "".join(dict.fromkeys((char.upper(), char.lower())))
    same = {c for c in _cased() if c.lower() == char.lower() or c.upper() == char.upper()}
    return "".join(sorted(same | {char}))


@cache
def _cased() -> tuple[str, ...]:
    return tuple(c for c in map(chr, range(0x20000)) if c.lower() != c or c.upper() != c)


@cache
def _word_characters() -> str:
    """What belongs in a character class: `\\w` lacks marks, which end most words of Hindi, and joiners."""
    extra = [c for c in range(0x1F000) if unicodedata.category(chr(c)) in ("Mn", "Mc", "Me", "Pc")]
    ranges: list[list[int]] = []
    for code in [*extra, 0x200C, 0x200D, *range(0xE0100, 0xE01F0)]:
        if ranges and code == ranges[-1][1] + 1:
            ranges[-1][1] = code
        else:
            ranges.append([code, code])
    return r"\w" + "".join(f"{re.escape(chr(first))}-{re.escape(chr(last))}" for first, last in ranges)
