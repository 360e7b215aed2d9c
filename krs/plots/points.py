"""Fig. 2: what was kept over what was forgotten."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from krs._typing import Axes, DataFrame
from krs.errors import KrsError
from krs.plots.kinds import HasTable
from krs.plots.style import COLOURS, MARKERS, axes_for


def plot_tradeoff(points: Mapping[str, Sequence[HasTable]], ax: Axes | None = None) -> Axes:
    """The paper's Fig. 2: BLEU on target questions (x) against BLEU on unrelated ones (y), a colour a method.

    The wanted corner is at the upper left: target answers gone, unrelated ones kept. Dotted lines show the vanilla
    model against itself, the exact ceiling of either axis.

    Args:
        points: for each method its results of `krs.metrics.answers`, one a hyper-parameter setting, in order: the
            line joins them, and markers grow from the first to the last.
        ax: axes to draw on; new ones if not given.

    Raises `KrsError` for results that were not asked unrelated questions, or whose BLEU is of different kinds.
    """
    tables = {name: [a.table for a in found] for name, found in points.items()}
    every = [table for found in tables.values() for table in found]
    kinds = {a.provenance["bleu"] for found in points.values() for a in found}
    if not every:
        raise KrsError("nothing to draw: give at least one result of krs.metrics.answers")
    if len(kinds) > 1:
        raise KrsError(f"the results' BLEU is of different kinds ({' and '.join(sorted(kinds))}): compute it alike")
    if any("unrelated" not in table.index for table in every):
        raise KrsError(
            "a result has no unrelated questions, the figure's y axis: pass unrelated= to krs.metrics.answers"
        )
    axes = axes_for(ax)
    for i, (name, found) in enumerate(tables.items()):
        x, y = ([table.bleu[side] for table in found] for side in ("target", "unrelated"))
        colour, sizes = COLOURS[i % len(COLOURS)], np.linspace(28, 80, len(found))
        axes.plot(x, y, color=colour, linewidth=0.9, alpha=0.6, zorder=1)
        style: dict[str, Any] = {"s": sizes, "color": colour, "marker": MARKERS[i % len(MARKERS)], "zorder": 2}
        axes.scatter(x, y, label=name or None, **style)
    ceiling = every[0].ceiling
    axes.axvline(ceiling["target"], color="black", linewidth=0.8, linestyle=":", zorder=0)
    axes.axhline(ceiling["unrelated"], color="black", linewidth=0.8, linestyle=":", zorder=0)
    axes.set_xlim(-3, 105)
    axes.set_ylim(-3, 105)
    axes.set_xlabel("BLEU, target questions (low: forgotten)")
    axes.set_ylabel("BLEU, unrelated questions (high: kept)")
    if any(points):
        axes.legend(frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.02), ncols=4)
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def plot_points(table: DataFrame, ax: Axes | None = None) -> Axes:
    """Fig. 2 from a table: BLEU on target questions (x) and on unrelated ones (y), a colour a method.

    Args:
        table: a row a point, with columns `method`, `target`, `unrelated`, `target_ceiling` and `unrelated_ceiling`
            (BLEU, 0 to 100); a line joins a method's points in the table's order, and markers grow along it.
        ax: axes to draw on; new ones if not given.
    """
    axes = axes_for(ax)
    for i, (method, part) in enumerate(table.groupby("method", sort=False)):
        colour, sizes = COLOURS[i % len(COLOURS)], np.linspace(28, 80, len(part))
        axes.plot(part.target, part.unrelated, color=colour, linewidth=0.9, alpha=0.6, zorder=1)
        style: dict[str, Any] = {"s": sizes, "color": colour, "marker": MARKERS[i % len(MARKERS)], "zorder": 2}
        axes.scatter(part.target, part.unrelated, label=str(method), **style)
    axes.axvline(table.target_ceiling.mean(), color="black", linewidth=0.8, linestyle=":", zorder=0)
    axes.axhline(table.unrelated_ceiling.mean(), color="black", linewidth=0.8, linestyle=":", zorder=0)
    axes.set_xlim(-3, 105)
    axes.set_ylim(-3, 105)
    axes.set_xlabel("BLEU, target questions (low: forgotten)")
    axes.set_ylabel("BLEU, unrelated questions (high: kept)")
    axes.legend(frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.02), ncols=4)
    axes.spines[["top", "right"]].set_visible(False)
    return axes
