"""Fig. 1: lines over layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from krs._typing import Axes, DataFrame
from krs.plots.kinds import Drawn
from krs.plots.style import COLOURS, FEW, MARKERS, TICKS, axes_for, places, whole_numbers
from krs.wording import counted


def plot_sweep(result: Drawn, ax: Axes | None = None) -> Axes:
    """The paper's Fig. 1 of a sweep, or the map that it is: `result.plot(ax)`."""
    return result.plot(ax=ax)


def plot_lines(
    table: DataFrame,
    *,
    labels: Sequence[str],
    low: DataFrame | None = None,
    high: DataFrame | None = None,
    members: Sequence[DataFrame] = (),
    x_label: str = "Layer",
    y_label: str = "Knowledge Recovery Score",
    title: str = "",
    ax: Axes | None = None,
) -> Axes:
    """The paper's Fig. 1: a line a column over the layers, with lines at none (0) and full recovery (1).

    Args:
        table: a row a window, by its name, in order; a column a line.
        labels: of the columns, for the legend.
        low: lower edges of bands, as `table`.
        high: upper edges.
        members: tables of what `table` is the mean of, as `table`, drawn thin behind it.
        x_label: of the windows.
        y_label: of the values.
        title: above it all.
        ax: axes to draw on; new ones if not given.

    Returns the axes. In a notebook the figure shows itself; `ax.figure.savefig("fig1.png")` saves it.
    """
    axes = axes_for(ax)
    names = list(table.index)
    x, layers = places(names)
    shown = [table.to_numpy(dtype=float), *(t.to_numpy(dtype=float) for t in (*members, low, high) if t is not None)]
    for i, label in enumerate(labels):
        colour = COLOURS[i % len(COLOURS)]
        for member in members:
            axes.plot(x, member.iloc[:, i].to_numpy(dtype=float), color=colour, linewidth=0.5, alpha=0.3, zorder=1)
        if low is not None and high is not None:
            below, above = (edge.iloc[:, i].to_numpy(dtype=float) for edge in (low, high))
            axes.fill_between(x, below, above, color=colour, alpha=0.18, linewidth=0, zorder=2)
        style: dict[str, Any] = {"marker": MARKERS[i % len(MARKERS)], "markersize": 3.5, "linewidth": 1.6}
        numbers = table.iloc[:, i].to_numpy(dtype=float)
        there = np.flatnonzero(~np.isnan(numbers))
        span = slice(there[0], there[-1] + 1) if len(there) else slice(0)  # a line has the windows of its setting
        axes.plot(x[span], numbers[span], label=label, color=colour, zorder=3, **style)
    for level in (0.0, 1.0):
        axes.axhline(level, color="black", linewidth=0.8, linestyle=":", zorder=0)
    if len(names) <= FEW:
        axes.set_xticks(x, [str(name) for name in names])
    elif len(layers) == len(names):
        whole_numbers(axes.xaxis)
    else:
        ticks = [i for i, n in enumerate(names) if i not in layers or len(names) <= TICKS or n % 5 == 0]
        axes.set_xticks(x[ticks], [str(names[i]) for i in ticks], rotation=45, ha="right")
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    numbers = np.concatenate([values[~np.isnan(values)] for values in shown])
    lowest, highest = (float(most(numbers, initial=end)) for most, end in ((np.min, 0.0), (np.max, 1.0)))
    axes.update_datalim([(x[0], 0.0), (x[-1], 0.0)])  # every window has its place, also those that have no number
    axes.autoscale_view(scaley=False)
    axes.set_ylim(min(-0.05, lowest - 0.05), max(1.05, highest + 0.05))
    axes.set_title(title, fontsize=9)
    place = 1.03 + 0.045 * len(title.splitlines())
    axes.legend(frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, place), ncols=2)
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def plot_curves(
    table: DataFrame,
    ax: Axes | None = None,
    *,
    label: Callable[[str], str] = str,
    x_label: str = "Layer (centre of the window)",
) -> Axes:
    """Fig. 1 over many cells: each setting's mean, a standard deviation between cells as a band, every cell behind.

    Args:
        table: a row a cell, setting and window, with columns `cell`, `setting`, `window` and `krs`.
        ax: axes to draw on; new ones if not given.
        label: how the legend calls a setting.
        x_label: of the windows.
    """
    windows, settings = (list(dict.fromkeys(table[name])) for name in ("window", "setting"))
    cells = [
        part.pivot_table(index="window", columns="setting", values="krs", sort=False, dropna=False).reindex(
            index=windows, columns=settings
        )
        for _, part in table.groupby("cell", sort=False)
    ]
    values = np.array([cell.to_numpy(dtype=float) for cell in cells])
    mean, spread = mean_and_sd(values)

    def like(values: np.ndarray) -> DataFrame:
        return type(cells[0])(values, index=windows, columns=settings)

    return plot_lines(
        like(mean),
        labels=[label(str(s)) for s in settings],
        x_label=x_label,
        low=like(mean - np.nan_to_num(spread)),
        high=like(mean + np.nan_to_num(spread)),
        members=cells,
        title=f"mean of {counted(len(cells), 'cell')}; band: ± 1 SD between cells",
        ax=ax,
    )


def mean_and_sd(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation (n - 1) over the first axis, of what is a number; NaN where too few are."""
    there = ~np.isnan(values)
    n = there.sum(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = np.where(there, values, 0).sum(0) / n
        squares = (np.where(there, values - mean, 0) ** 2).sum(0)
        return np.where(n > 0, mean, np.nan), np.where(n > 1, np.sqrt(squares / (n - 1)), np.nan)
