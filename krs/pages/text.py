"""Texts and numbers as HTML and JSON have them. Whatever comes in may be a model's words: text, and nothing else."""

from __future__ import annotations

import json
import math
from html import escape
from typing import Any

from krs._typing import DataFrame

NOTHING = "–"  # noqa: RUF001 - a dash, as tables have it


def html(text: Any) -> str:
    """A text inside an element or an attribute.

    >>> html("</td><script>alert('1')</script>")
    '&lt;/td&gt;&lt;script&gt;alert(&#x27;1&#x27;)&lt;/script&gt;'
    """
    return escape(str(text), quote=True)


def embedded(value: Any) -> str:
    """A value as JSON that may stand in a script element: nothing in it ends the element or begins another.

    >>> embedded({"said": "</script><!--"})
    '{"said":"\\\\u003c/script\\\\u003e\\\\u003c!--"}'
    """
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text


def number(value: Any, digits: int | None = None) -> str:
    """A cell's text: a number with so many digits behind the point, or four that count; texts as they are.

    >>> number(0.12345, 2), number(12345.678), number(-0.0001, 2), number(float("nan")), number(3), number("npo")
    ('0.12', '1.235e+04', '0.00', '–', '3', 'npo')
    """
    if value is None:
        return NOTHING
    if not isinstance(value, float) and not hasattr(value, "dtype"):
        return NOTHING if type(value).__name__ == "NAType" else str(value)
    value = value.item() if hasattr(value, "item") else value
    if not isinstance(value, float):
        return str(value)
    if not math.isfinite(value):
        return NOTHING if math.isnan(value) else str(value)
    return f"{value:z.4g}" if digits is None else f"{value:z.{digits}f}"


def rounded(value: Any) -> float | None:
    """A number for a figure, with five digits that count; `None` where there is none."""
    value = float(value)
    return float(f"{value:.5g}") if math.isfinite(value) else None


def peaks(table: DataFrame, digits: int = 3) -> str:
    """How each column runs, for those who cannot see its line: where it is highest and lowest, and how it ends.

    >>> import pandas as pd
    >>> peaks(pd.DataFrame({"mlp_coef": [0.1, 0.75, 0.3]}, index=[4, 5, 6]))
    'mlp_coef highest 0.750 at 5, lowest 0.100 at 4, last 0.300'
    >>> peaks(pd.DataFrame({"attn_out": [0.5]}, index=[4]))
    'attn_out 0.500 at 4'
    """
    told = []
    for name in table.columns:
        column = table[name].dropna()
        if not len(column):
            continue
        high, low, last = (number(float(value), digits) for value in (column.max(), column.min(), column.iloc[-1]))
        if high == low:
            there = f" at {column.index[0]}" if len(column) == 1 else " everywhere"
            told.append(f"{name} {high}{there}")
        else:
            told.append(f"{name} highest {high} at {column.idxmax()}, lowest {low} at {column.idxmin()}, last {last}")
    return "; ".join(told) or "no numbers"
