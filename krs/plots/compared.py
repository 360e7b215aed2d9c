"""Several sweeps in one figure: a panel a setting, a line a sweep. Takes plain tables; needs matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from krs._typing import Axes, DataFrame
from krs.errors import KrsError
from krs.extras import require
from krs.plots.curves import plot_lines

_WIDTH = 6.4
_HEIGHT = {1: 4.2, 2: 3.0}
"""Of a row of panels, in inches, by how many stand in a row; the width is that of a page's text."""


def plot_compared(
    tables: Mapping[str, DataFrame],
    *,
    panels: Mapping[str, str],
    edges: Mapping[str, tuple[DataFrame, DataFrame]] | None = None,
    x_label: str = "Layer",
    y_label: str = "Knowledge Recovery Score",
    title: str = "",
    ax: Any = None,
) -> Axes:
    """A panel for each setting, on one scale, with a line, told apart by colour and marker, for each table.

    Args:
        tables: by the names of the lines; rows are windows, columns settings, some of which a table may lack.
        panels: titles by column, in order.
        edges: lower and upper edges of bands, as the tables, of those that have them.
        x_label: of the windows.
        y_label: of the values.
        title: above it all.
        ax: axes for one panel, or an empty figure; a new figure if not given.

    Returns the first panel's axes; its `figure` has all of them.

    Raises `KrsError` for axes where there are several panels.
    """
    shown = _panels(ax, len(panels))
    whole, limits = len(panels) > 1, []
    for axes, (column, name) in zip(shown, panels.items(), strict=True):
        there = [line for line, table in tables.items() if column in table]
        low = high = None
        if edges:
            low, high = (_side_by_side({n: edges[n][i] for n in there if n in edges}, column, there) for i in (0, 1))
        plot_lines(
            _side_by_side({n: tables[n] for n in there}, column, there),
            labels=there,
            low=low,
            high=high,
            x_label="" if whole else x_label,
            y_label="" if whole else y_label,
            title=name if whole or not title else f"{title}\n{name}",
            ax=axes,
        )
        limits.append(axes.get_ylim())
    shown[0].set_ylim(min(low for low, _ in limits), max(high for _, high in limits))  # the axes share it
    if whole:
        shown[0].figure.supxlabel(x_label, fontsize="medium")
        shown[0].figure.supylabel(y_label, fontsize="medium")
        _one_legend(shown, title)
    return shown[0]


def _side_by_side(tables: Mapping[str, DataFrame], column: str, names: Sequence[str]) -> DataFrame:
    """One setting of several tables, a column a table; windows that one of them lacks are NaN there."""
    import pandas as pd

    joined = pd.concat({name: table[column] for name, table in tables.items()}, axis=1) if tables else pd.DataFrame()
    joined = joined.reindex(columns=list(names))
    numeric = all(not isinstance(window, str) for window in joined.index)
    return joined.sort_index() if numeric else joined


def _one_legend(panels: Sequence[Axes], title: str) -> None:
    """One for all panels, of every line that is in some of them."""
    handles: dict[str, Any] = {}
    for axes in panels:
        handles |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
        if (legend := axes.get_legend()) is not None:
            legend.remove()
    figure = panels[0].figure
    options: dict[str, Any] = {"loc": "outside upper center", "frameon": False, "fontsize": 8, "ncols": 3}
    options |= {"title": title, "title_fontsize": 9, "alignment": "center"} if title else {}
    figure.legend(list(handles.values()), list(handles), **options)


def _panels(ax: Any, n: int) -> list[Axes]:
    if ax is not None and not hasattr(ax, "add_subplot"):
        if n > 1:
            raise KrsError(f"there are {n} panels to draw, and one pair of axes: name one setting with setting=")
        return [ax]
    if ax is None:
        require("matplotlib", "plot", "a figure")
        import matplotlib.pyplot as plt

        ax = plt.figure(layout="constrained")
    wide = min(n, 2)
    rows = -(-n // wide)
    ax.set_size_inches(_WIDTH, _HEIGHT[wide] * rows + (0.4 if n > 1 else 0))
    grid = ax.subplots(rows, wide, squeeze=False, sharey=True).ravel()
    for spare in grid[n:]:
        spare.remove()
    return list(grid[:n])
