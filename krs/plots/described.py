"""What a figure says of itself in its file, for whoever does not see it: a title, and a description in words."""

from __future__ import annotations

import re
import zlib
from html import escape
from pathlib import Path
from typing import Any

from krs.writing import replacing

_UNDATED: dict[str, dict[str, None]] = {".png": {}, ".pdf": {"CreationDate": None}, ".svg": {"Date": None}}
"""By ending: what keeps the time of day out of the file, so that the same figure is the same bytes."""
_DESCRIPTION = {".png": "Description", ".pdf": "Subject", ".svg": "Description"}


def write(figure: Any, path: str | Path, title: str, description: str, **options: Any) -> None:
    """Save a figure in one step; text in SVG and PDF is text.

    PNG and PDF have title and description among their metadata (PNG's Title and Description, PDF's Title and Subject),
    SVG there too and as `<title>` and `<desc>`, by which screen readers call it. Other kinds have neither.

    Args:
        figure: matplotlib's.
        path: its ending says which kind of file it is.
        title: what the figure is.
        description: what it shows.
        options: for `savefig`.
    """
    from matplotlib import rc_context

    kind = Path(path).suffix.lower()
    title, description = _plain(title), _plain(description)
    if kind in _UNDATED:
        told = {"Title": title, _DESCRIPTION[kind]: description}
        options["metadata"] = _UNDATED[kind] | {name: text for name, text in told.items() if text}
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "krs", "pdf.fonttype": 42}), replacing(path) as unfinished:
        figure.savefig(unfinished, **options)
        if kind == ".svg" and (title or description):
            text = labelled(unfinished.read_text(encoding="utf-8"), title, description)
            unfinished.write_text(text, encoding="utf-8", newline="\n")


def labelled(svg: str, title: str, description: str) -> str:
    """An SVG as matplotlib writes it that is one image to screen readers, called by its first children.

    >>> print(labelled("<svg width='1'><title>a &lt; b</title><g/></svg>", "a < b", "One line."))
    <svg width='1' role="img" aria-labelledby="title-a5f408d8 desc-a5f408d8">
     <title id="title-a5f408d8">a &lt; b</title>
     <desc id="desc-a5f408d8">One line.</desc><g/></svg>
    """
    before, root, rest = re.split(r"(<svg\b[^>]*)>", svg, maxsplit=1)
    if title:  # matplotlib's own has no id
        rest = re.sub(r"\s*<title>.*?</title>", "", rest, count=1, flags=re.DOTALL)
    given = {name: text for name, text in (("title", title), ("desc", description)) if text}
    mark = f"{zlib.crc32(f'{title} {description}'.encode()):08x}"  # several may stand in one page
    children = "".join(f'\n <{n} id="{n}-{mark}">{escape(text, quote=False)}</{n}>' for n, text in given.items())
    return f'{before}{root} role="img" aria-labelledby="{" ".join(f"{n}-{mark}" for n in given)}">{children}{rest}'


def _plain(text: str) -> str:
    """One line of what XML may hold."""
    return "".join(c for c in " ".join(text.split()) if c.isprintable())
