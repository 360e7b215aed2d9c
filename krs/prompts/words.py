"""Where a subject stands in a text as words of its own, and where only inside a longer word."""

from __future__ import annotations

import re
import unicodedata
from functools import cache
from itertools import groupby

_PARTICLES = "은는이가을를의에도와과로만께"
_PARTICLE = re.compile(f"(?:으로|에서|에게|까지|부터|처럼|보다|이나|이란|[{_PARTICLES}])")
_UNSPACED = ("CJK", "IDEOGRAPHIC", "HIRAGANA", "THAI", "LAO", "KHMER", "MYANMAR")
_KATAKANA = ("KATAKANA", "HALFWIDTH KATAKANA")


def whole_words(text: str, subject: str, ignore_case: bool = False) -> list[int]:
    """Where `subject` begins in `text`, each time that no longer word contains it.

    Letters, digits, marks and connectors such as `_` make words, in all scripts. Scripts that put no blanks between
    words (Han, hiragana, Thai, Lao, Khmer, Burmese) have a boundary between any two letters, and katakana one where it
    meets another script; a Korean particle is no part of the noun before it.

    >>> whole_words("Why do Parisians love Paris?", "Paris"), whole_words("東京の塔", "東京")
    ([22], [0])
    """
    found = re.finditer(f"(?=({re.escape(subject)}))", text, re.IGNORECASE if ignore_case else 0)
    return [m.start() for m in found if _apart(text, m.start()) and _ends(text, m.end(1))]


def longer_word(text: str, subject: str) -> str | None:
    """The first longer word of `text` that contains `subject`; `None` where there is none.

    >>> longer_word("Why do Parisians love cheese?", "Paris")
    'Parisians'
    """
    start = text.find(subject)
    if start < 0:
        return None
    end = start + len(subject)
    while not _apart(text, start):
        start -= 1
    while not _apart(text, end):
        end += 1
    return text[start:end]


def last_word(text: str) -> str | None:
    """The last run of word characters; `None` where there is none."""
    runs = [(key, "".join(chars)) for key, chars in groupby(text, _in_word)]
    return next((run for in_word, run in reversed(runs) if in_word), None)


def _ends(text: str, i: int) -> bool:
    """Whether a word, or a Korean noun before its particle, ends at `i`."""
    if _apart(text, i):
        return True
    particle = _PARTICLE.match(text, i)
    return particle is not None and _script(text[i - 1]) == "hangul" and _apart(text, particle.end())


def _apart(text: str, i: int) -> bool:
    """Whether a boundary of words lies between the characters `i - 1` and `i`."""
    if i in (0, len(text)) or not _in_word(text[i - 1]) or not _in_word(text[i]):
        return True
    if unicodedata.category(text[i])[0] == "M" or text[i] in "\u200c\u200d":
        return False
    before, after = _script(text[i - 1]), _script(text[i])
    return "unspaced" in (before, after) or (before != after and "katakana" in (before, after))


def _in_word(char: str) -> bool:
    return char.isalnum() or unicodedata.category(char) in ("Mn", "Mc", "Me", "Pc") or char in "\u200c\u200d"


@cache
def _script(char: str) -> str:
    name = unicodedata.name(char, "")
    if name.startswith(_KATAKANA):
        return "katakana"
    if name.startswith("HANGUL"):
        return "hangul"
    return "unspaced" if name.startswith(_UNSPACED) else "spaced"
