"""How lines are told apart: by colour (Okabe and Ito's, for all kinds of eyes), by dashes and by marks."""

from __future__ import annotations

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#8c6bb1", "#8a8a8a")
DASHES = ((1, 0), (7, 3), (2, 2), (8, 3, 2, 3), (12, 4), (4, 2, 1, 2, 1, 2), (1, 3), (10, 2, 2, 2))
MARKS = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right", "triangle-left")
"""Names of Vega's symbols."""

_PATHS = {
    "circle": "M13 6a4 4 0 1 0 8 0a4 4 0 1 0-8 0z",
    "square": "M13 2h8v8h-8z",
    "triangle-up": "M17 1.5l4.6 8h-9.2z",
    "diamond": "M17 1l5 5-5 5-5-5z",
    "cross": "M15 1h4v3h3v4h-3v3h-4v-3h-3v-4h3z",
    "triangle-down": "M17 10.5l4.6-8h-9.2z",
    "triangle-right": "M21.5 6l-8 4.6v-9.2z",
    "triangle-left": "M12.5 6l8 4.6v-9.2z",
}
SYMBOLS = "".join(
    f'<symbol id="k{i}" viewBox="0 0 34 12"><path d="M0 6h34" stroke="{colour}" stroke-width="2" fill="none"'
    f' stroke-dasharray="{" ".join(map(str, dash)) if dash[1] else "none"}"/>'
    f'<path d="{_PATHS[mark]}" fill="{colour}"/></symbol>'
    for i, (colour, dash, mark) in enumerate(zip(COLOURS, DASHES, MARKS, strict=True))
)
"""A sample of each kind of line, for legends."""


def look(i: int) -> int:
    """Which of the kinds of lines the `i`-th has; they begin again where there are more."""
    return i % len(COLOURS)
