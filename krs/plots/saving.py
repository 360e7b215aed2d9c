"""Figures into files, in one step and without pyplot."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from krs._typing import Axes, DataFrame
from krs.extras import installed, missing, require
from krs.plots.curves import plot_curves
from krs.plots.described import write
from krs.plots.kinds import Drawn, HasTable
from krs.plots.points import plot_points, plot_tradeoff
from krs.plots.style import SIZE


def save_curves(table: DataFrame, path: Path, label: Callable[[str], str], title: str, description: str) -> None:
    """Draw `plot_curves` into a file, without touching pyplot."""
    _drawn(lambda axes: plot_curves(table, axes, label=label), path, title, description)


def save_points(table: DataFrame, path: Path, title: str, description: str) -> None:
    """Draw `plot_points` into a file, without touching pyplot."""
    _drawn(lambda axes: plot_points(table, axes), path, title, description)


def _drawn(draw: Callable[[Axes], object], path: Path, title: str, description: str) -> None:
    save_drawn(lambda figure: draw(figure.add_subplot()), path, title, description)


def save_drawn(draw: Callable[[Any], object], path: Path, title: str, description: str) -> None:
    """Have something drawn into an empty figure, without touching pyplot, and write it; in SVG and PDF text is text.

    `title` and `description` are for whoever does not see the figure; see `save_figure`.
    """
    require("matplotlib", "plot", "a figure")
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE, layout="constrained")
    draw(figure)
    write(figure, path, title, description, dpi=150)


def save_figure(
    result: Drawn | Mapping[str, Sequence[HasTable]], path: Path, title: str = "", description: str = ""
) -> None:
    """Draw a sweep (Fig. 1, or maps), answers (Fig. 2) or a drift into a file, without touching pyplot.

    The ending of the file's name says which kind of picture it is. In SVG and PDF text stays text.

    Args:
        result: what is drawn; of answers a mapping, as `plot_tradeoff` takes it.
        path: a .png, .pdf or .svg.
        title: what the figure is, for whoever does not see it: among the file's metadata, and SVG's `<title>`.
        description: what it shows, in words, likewise: PNG's Description, PDF's Subject, SVG's `<desc>`.
    """
    if isinstance(result, Mapping):
        _drawn(lambda axes: plot_tradeoff(result, axes), path, title, description)
    else:
        save_drawn(lambda figure: result.plot(ax=figure), path, title, description)


def save_figure_or_say(
    result: Drawn | Mapping[str, Sequence[HasTable]], path: Path, title: str, description: str
) -> list[str]:
    """`save_figure` where matplotlib is installed; otherwise the error output says that the figure was left out.

    Returns the names of the files that were written.
    """
    if not installed("matplotlib"):
        sys.stderr.write(f"{path.name} is left out: {missing('matplotlib', 'plot', 'a figure')}\n")
        return []
    save_figure(result, path, title, description)
    return [path.name]
