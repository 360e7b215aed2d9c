"""Lines of prose at the terminal's width."""

from __future__ import annotations

import re
import shutil
import textwrap

_NARROWEST = 20
_KEPT = "\x00"
"""Stands for a space at which no line ends; no text that is shown has it."""


def wrapped(line: str) -> list[str]:
    """A line as several, none wider than the terminal (`COLUMNS`; 80 where there is none) unless one word is.

    What belongs to an item of a list stands below its text.

    >>> import os
    >>> os.environ["COLUMNS"] = "30"
    >>> print("\\n".join(wrapped("- unrelated: what a model says to other questions")))
    - unrelated: what a model says
      to other questions
    >>> del os.environ["COLUMNS"]
    """
    width = max(_NARROWEST, shutil.get_terminal_size().columns)
    hang = re.match(r" *(?:- )?", line)
    indent = " " * len(hang[0] if hang else "")
    if indent and not line.lstrip().startswith("- "):
        indent += "  "
    lines = textwrap.wrap(
        line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False, expand_tabs=False
    )
    return [found.replace(_KEPT, " ") for found in lines] or [""]


def whole(text: str) -> str:
    """A text that `wrapped` leaves in one piece, such as a path."""
    return text.replace(" ", _KEPT)
