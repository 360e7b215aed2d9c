"""Figures into files, in one step and without pyplot."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from krs._typing import Axes, DataFrame
from krs.extras import installed, missing, require
from krs.plots.curves import plot_curves
from krs.plots.kinds import Drawn, HasTable
from krs.plots.points import plot_points, plot_tradeoff
from krs.plots.style import SIZE
from krs.writing import replacing


def save_curves(table: DataFrame, path: Path, label: Callable[[str], str] = str) -> None:
    """Draw `plot_curves` into a file, without touching pyplot."""
    _drawn(lambda axes: plot_curves(table, axes, label=label), path)


def save_points(table: DataFrame, path: Path) -> None:
    """Draw `plot_points` into a file, without touching pyplot."""
    _drawn(lambda axes: plot_points(table, axes), path)


def _drawn(draw: Callable[[Axes], object], path: Path) -> None:
    save_drawn(lambda figure: draw(figure.add_subplot()), path)


def save_drawn(draw: Callable[[Any], object], path: Path) -> None:
    """Have something drawn into an empty figure, without touching pyplot, and write it; in SVG and PDF text is text."""
    require("matplotlib", "plot", "a figure")
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE, layout="constrained")
    with rc_context({"svg.fonttype": "none", "pdf.fonttype": 42}):
        draw(figure)
        with replacing(path) as unfinished:
            figure.savefig(unfinished, dpi=150)


def save_figure(result: Drawn | Mapping[str, Sequence[HasTable]], path: Path) -> None:
    """Draw a sweep (Fig. 1, or maps), answers (Fig. 2) or a drift into a file, without touching pyplot.

    The ending of the file's name says which kind of picture it is. In SVG and PDF text stays text.
    """
    if isinstance(result, Mapping):
        _drawn(lambda axes: plot_tradeoff(result, axes), path)
    else:
        save_drawn(lambda figure: result.plot(ax=figure), path)


def save_figure_or_say(result: Drawn | Mapping[str, Sequence[HasTable]], path: Path) -> list[str]:
    """`save_figure` where matplotlib is installed; otherwise the error output says that the figure was left out.

    Returns the names of the files that were written.
    """
    if not installed("matplotlib"):
        sys.stderr.write(f"{path.name} is left out: {missing('matplotlib', 'plot', 'a figure')}\n")
        return []
    save_figure(result, path)
    return [path.name]
