"""Small things that messages are made of."""

from __future__ import annotations

import re
import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence
from math import isnan
from numbers import Real
from typing import Any

_NARROWEST, _WIDEST = 20, 100
_KEPT = "\x00"
"""Stands for a space at which no line ends; no text that is shown has it."""


def counted(n: int, noun: str, plural: str | None = None) -> str:
    """A number and what it counts, as English has it.

    >>> counted(1, "setting"), counted(1200, "step"), counted(0, "query", "queries")
    ('1 setting', '1,200 steps', '0 queries')
    """
    return f"{n:,} {noun if n == 1 else plural or noun + 's'}"


def kind(value: object) -> str:
    """What a value is, for messages.

    >>> kind(None), kind(b"hi"), kind(2.5), kind([1]), kind(3)
    ('None', 'bytes', 'a float (2.5)', 'a list', 'an int (3)')
    """
    if value is None:
        return "None"
    if isinstance(value, bytes | bytearray):
        return "bytes"
    name = type(value).__name__
    article = "an" if name[:1].lower() in "aeiou" else "a"
    return f"{article} {name}" + (f" ({value})" if isinstance(value, Real) else "")


def cut_off(text: str, ids: Sequence[int], ends: Iterable[int]) -> str:
    """A generated text as a reader should see it: with an ellipsis where it stops for want of tokens, not at an end.

    >>> cut_off("The books were written ", [5, 9], ends={0}), cut_off("In 1815.", [5, 0], ends={0})
    ('The books were written…', 'In 1815.')
    """
    return text if not ids or ids[-1] in ends else f"{text.rstrip()}…"


def span(seconds: float) -> str:
    """A time as people say it.

    >>> span(42.0), span(3700.0)
    ('42 s', '1 h 2 min')
    """
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def heights(values: Sequence[float], places: Sequence[str], *, so_far: bool = False, curve: bool = True) -> str:
    """Numbers in words: the highest and where that is; of a curve the lowest and the last one too.

    >>> heights([0.1, 0.746, 0.3], ["layer 0", "layer 1", "layer 2"])
    'highest 0.75 at layer 1, lowest 0.10 at layer 0, last 0.30'
    >>> heights([0.0, 0.001], ["layer 0", "layer 1"]), heights([float("nan")], ["layer 0"])
    ('0 everywhere', 'no number')

    Args:
        values: NaN where there is none.
        places: of each value.
        so_far: whether some are still to come; then it says where the last one is.
        curve: `False` for a map.
    """
    shown = [(value, f"{value:z.2f}", place) for value, place in zip(values, places, strict=True) if not isnan(value)]
    if not shown:
        return "no number"
    (_, high, top), (_, low, bottom), (_, last, end) = (*(most(shown, key=_value) for most in (max, min)), shown[-1])
    far = " so far" if so_far else ""
    if len(shown) > 1 and low == high:
        return f"{'0' if high == '0.00' else high}{far} everywhere"
    told = f"highest{far} {high} at {top}"
    if not curve or len(shown) == 1:
        return told
    return f"{told}, lowest {low} at {bottom}, last {last}{f' at {end}' if so_far else ''}"


def _value(shown: tuple[float, str, str]) -> float:
    return shown[0]


def as_text(frame: Any, digits: int | None = None, **options: Any) -> str:
    """A data frame as text, all of it: columns that do not fit beside each other at the terminal's width (`COLUMNS`; 80
    where there is none, as in a pipe) come below, with the index again.

    Args:
        frame: it.
        digits: behind the point; as pandas has it if not given.
        options: of `DataFrame.to_string`.
    """
    if digits is not None:
        options["float_format"] = lambda x: f"{x:z.{digits}f}"
    return str(frame.to_string(line_width=max(_NARROWEST, shutil.get_terminal_size().columns), **options))


def prose(text: str) -> str:
    """Paragraphs, a line each, as `wrapped` breaks them, and at 100 columns in a wider terminal.

    >>> import os
    >>> os.environ["COLUMNS"] = "30"
    >>> print(prose("- unrelated: what a model says to other questions"))
    - unrelated: what a model says
      to other questions
    >>> del os.environ["COLUMNS"]
    """
    return "\n".join(part for line in text.splitlines() for part in wrapped(line, _WIDEST))


def wrapped(line: str, widest: int | None = None) -> list[str]:
    """A line as several, none wider than the terminal (`COLUMNS`; 80 where there is none, as in a pipe) unless one word
    is. What belongs to an item or a numbered step stands below its text, and further in than a line that was indented.
    """
    width = max(_NARROWEST, min(widest or sys.maxsize, shutil.get_terminal_size().columns))
    hang = re.match(r" *(?:- |\d/\d  )?", line)
    indent = " " * len(hang[0] if hang else "")
    if indent and not line[: len(indent)].strip():
        indent += "  "
    lines = textwrap.wrap(
        line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False, expand_tabs=False
    )
    return [found.replace(_KEPT, " ") for found in lines] or [""]


def whole(text: str) -> str:
    """A text that `wrapped` leaves in one piece, such as a path."""
    return text.replace(" ", _KEPT)
