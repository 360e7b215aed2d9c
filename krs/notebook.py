"""Results as notebooks show them: a line, a table, notes. They bring no colours, and read in the dark too."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from krs._typing import DataFrame


def as_html(
    headline: str, table: DataFrame, notes: Iterable[str] = (), *, number: str = "z.3f", index: bool = True
) -> str:
    """What `_repr_html_` returns; every text stays text, and `number` is the format of floats.

    >>> import pandas as pd
    >>> shown = as_html("a < b", pd.DataFrame({"krs": [0.25]}), ["<i>"], number=".1f")
    >>> "a &lt; b" in shown, "<td>0.2</td>" in shown, "<i>" in shown
    (True, True, False)
    """
    shown = table.to_html(float_format=lambda x: format(x, number), border=0, index=index)
    told = "".join(f"<p><em>{escape(note)}</em></p>" for note in notes)
    return f"<p><strong>{escape(headline)}</strong></p>{shown}{told}"
