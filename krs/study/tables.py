"""Tables of a study as they are read back: a text is a text, whatever it says."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from krs._typing import DataFrame

_TEXTS = {
    "side", "question", "text", "vanilla", "unlearned", "restored", "setting", "component", "instrument", "verdict",
    "token",
}  # fmt: skip
"""Columns of texts: a model may say "NA", "null", "007", or nothing."""


def written(table: DataFrame) -> str:
    """A table as CSV, which `read_table` reads: in a row each, also where a model has said a carriage return.

    >>> import pandas as pd
    >>> read_table(written(pd.DataFrame({"unlearned": ["a\\rb"], "bleu": [1.5]}))).values.tolist()
    [['a\\rb', 1.5]]
    """
    text = str(table.to_csv(index=False))
    return str(table.to_csv(index=False, quoting=csv.QUOTE_NONNUMERIC)) if "\r" in text else text


def read_file(path: Path) -> str:
    """A file's text as it is: what ends a line stays what it is."""
    return path.read_bytes().decode("utf-8")


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
