"""What figures have in common: colours, marks, axes, ticks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from krs._typing import Axes
from krs.extras import require

COLOURS = (
    "#1f6fb4",
    "#8a8a8a",
    "#d9822b",
    "#2a8c4a",
    "#8e4fa8",
    "#b03a48",
    "#5b7f95",
    "#7a6a2f",
    "#d36ba6",
    "#3c3c3c",
)
MARKERS = "osD^vP*X<h"
SIZE = (6.4, 4.2)
TICKS = 12
FEW = 6
"""So many windows have a tick each."""


def axes_for(ax: Any) -> Axes:
    """The axes given, or axes of an empty figure that was given; else of a pyplot figure, which a notebook shows."""
    if ax is None:
        require("matplotlib", "plot", "a figure")
        import matplotlib.pyplot as plt

        return plt.subplots(figsize=SIZE, layout="constrained")[1]
    found: Axes = ax.add_subplot() if hasattr(ax, "add_subplot") else ax
    return found


def places(names: Sequence[Any]) -> tuple[np.ndarray, set[int]]:
    """Where windows stand on the x axis, and which stand at their layer.

    Windows with other names before and behind the layers (the ends of the model) stand beside them; names among the
    layers leave all of them in turn.
    """
    layers = [i for i, n in enumerate(names) if isinstance(n, int | np.integer)]
    if not layers or layers != list(range(layers[0], layers[-1] + 1)):
        return np.arange(len(names), dtype=float), set()
    first, last = layers[0], layers[-1]
    x = [float(names[min(max(i, first), last)]) + min(i - first, 0) + max(i - last, 0) for i in range(len(names))]
    return np.array(x), set(layers)


def whole_numbers(axis: Any) -> None:
    """Layers are whole numbers."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(integer=True))


def name_ticks(axes: Axes, which: str, names: Sequence[str], every: bool = False) -> None:
    """Names of rows or columns, as many as there is room for, or all of them."""
    step = 1 if every else max(1, -(-len(names) // TICKS))
    at = list(range(0, len(names), step))
    turned: dict[str, Any] = {"rotation": 90, "fontsize": 7} if every else {}
    labels = [names[i].replace("$", "\\$") for i in at]
    (axes.set_xticks if which == "x" else axes.set_yticks)(at, labels, **turned)
