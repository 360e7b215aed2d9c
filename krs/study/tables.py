"""Tables of a study as they are read back: a text is a text, whatever it says."""

from __future__ import annotations

import io

from krs._typing import DataFrame

_TEXTS = {
    "side", "question", "text", "vanilla", "unlearned", "restored", "setting", "component", "instrument", "verdict",
    "token",
}  # fmt: skip
"""Columns of texts: a model may say "NA", "null", "007", or nothing."""


def read_table(text: str) -> DataFrame:
    """A table from its CSV.

    >>> read_table("unlearned,bleu\\nNone,1.5\\n,").values.tolist()
    [['None', 1.5], ['', nan]]

    Only in columns of numbers nothing means no number.
    """
    import pandas as pd

    names = pd.read_csv(io.StringIO(text), nrows=0).columns
    numbers = {name: [""] for name in names if name not in _TEXTS}
    texts = dict.fromkeys(_TEXTS.intersection(names), str)
    return pd.read_csv(io.StringIO(text), dtype=texts, keep_default_na=False, na_values=numbers)
