"""Figures of tables. The only room that imports matplotlib (extra `krs[plot]`); it knows no other room.

`result.plot()`, `drift.plot()` and `answers.plot()` hand it their tables; what stands here takes tables, or things that
have one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from krs._typing import Axes, DataFrame
from krs.errors import KrsError
from krs.extras import installed, missing, require
from krs.wording import counted
from krs.writing import replacing

_COLOURS = (
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
_TICKS = 12
_MARKERS = "osD^vP*X<h"
_SIZE = (6.4, 4.2)
_NONE = "0.8"
_TAIL = 2
"""Percent of the cells at either end of a map that the colours do not reach."""


@runtime_checkable
class Drawn(Protocol):
    """What draws itself: the result of a sweep, a mean of some, a drift, answers."""

    def plot(self, *, ax: Any = None) -> Axes:
        """Draw on axes, or into a figure."""


@runtime_checkable
class HasFrame(Protocol):
    """What has a tidy table, such as a drift."""

    @property
    def frame(self) -> DataFrame:
        """Tidy."""


@runtime_checkable
class HasTable(Protocol):
    """What has a table of means, such as answers, and says how they were made."""

    @property
    def table(self) -> DataFrame:
        """A row a side, with `bleu` and `ceiling`."""

    @property
    def provenance(self) -> dict[str, Any]:
        """With the kind of `bleu`."""


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
    axes = _axes(ax)
    names = list(table.index)
    x, layers = _places(names)
    shown = [table.to_numpy(dtype=float), *(t.to_numpy(dtype=float) for t in (*members, low, high) if t is not None)]
    for i, label in enumerate(labels):
        colour = _COLOURS[i % len(_COLOURS)]
        for member in members:
            axes.plot(x, member.iloc[:, i].to_numpy(dtype=float), color=colour, linewidth=0.5, alpha=0.3, zorder=1)
        if low is not None and high is not None:
            below, above = (edge.iloc[:, i].to_numpy(dtype=float) for edge in (low, high))
            axes.fill_between(x, below, above, color=colour, alpha=0.18, linewidth=0, zorder=2)
        style: dict[str, Any] = {"marker": _MARKERS[i % len(_MARKERS)], "markersize": 3.5, "linewidth": 1.6}
        numbers = table.iloc[:, i].to_numpy(dtype=float)
        there = np.flatnonzero(~np.isnan(numbers))
        span = slice(there[0], there[-1] + 1) if len(there) else slice(0)  # a line has the windows of its setting
        axes.plot(x[span], numbers[span], label=label, color=colour, zorder=3, **style)
    for level in (0.0, 1.0):
        axes.axhline(level, color="black", linewidth=0.8, linestyle=":", zorder=0)
    if len(layers) == len(names):
        _whole_numbers(axes.xaxis)
    else:
        ticks = [i for i, n in enumerate(names) if i not in layers or len(names) <= _TICKS or n % 5 == 0]
        axes.set_xticks(x[ticks], [str(names[i]) for i in ticks], rotation=45, ha="right")
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    lowest = min(np.nanmin(values, initial=0.0) for values in shown)
    highest = max(np.nanmax(values, initial=1.0) for values in shown)
    axes.set_ylim(min(-0.05, lowest - 0.05), max(1.05, highest + 0.05))
    axes.set_title(title, fontsize=9)
    place = 1.03 + 0.045 * len(title.splitlines())
    axes.legend(frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, place), ncols=2)
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def plot_maps(
    tables: Mapping[str, DataFrame],
    *,
    x_label: str,
    y_label: str = "Layer",
    value_label: str,
    title: str = "",
    ticks: Sequence[str] | None = None,
    divide: int | None = None,
    ax: Any = None,
) -> Axes:
    """Heat maps side by side, one scale for all: layers upwards, positions or heads to the right.

    The colours end at the second smallest and largest percent of the cells, never at a single cell, and the colour bar
    says where. Where much is below 0, they diverge from 0. Cells without a number are grey.

    Args:
        tables: by their titles; rows are windows, columns what is on the x axis.
        x_label: of the columns.
        y_label: of the rows.
        value_label: of the colours.
        title: above it all.
        ticks: texts of the columns, instead of their names.
        divide: a column before which a line is drawn.
        ax: axes for one map, or an empty figure to lay several out in; a new figure if not given.

    Returns the axes of the first map; its `figure` has all of them.

    Raises `KrsError` for axes where there are several maps.
    """
    panels = _panels(ax, len(tables))
    cells = np.concatenate([table.to_numpy(dtype=float).ravel() for table in tables.values()])
    colours, said = _colours(cells)
    image: Any = None
    for axes, (name, table) in zip(panels, tables.items(), strict=True):
        axes.set_facecolor(_NONE)
        image = axes.imshow(
            table.to_numpy(dtype=float), aspect="auto", origin="lower", interpolation="nearest", **colours
        )
        _name_ticks(axes, "y", [str(n) for n in table.index])
        _name_ticks(axes, "x", [str(c) for c in table.columns] if ticks is None else list(ticks), ticks is not None)
        axes.set_title(name, fontsize=9)
        if divide is not None:
            axes.axvline(divide - 0.5, color="black", linewidth=1.0, linestyle="--")
    panels[0].set_ylabel(y_label)
    figure = panels[0].figure
    if len(panels) > 1:
        figure.supxlabel(x_label, fontsize="medium")
    else:
        panels[0].set_xlabel(x_label)
    if title and len(panels) > 1:
        figure.suptitle(title, fontsize=9)
    elif title:
        panels[0].set_title(f"{title}\n{next(iter(tables))}", fontsize=9)
    grey = "\ngrey: none there" if np.isnan(cells).any() else ""
    bar = figure.colorbar(image, ax=panels, extend=_extend(cells, colours))
    bar.set_label(f"{value_label}\n{said}{grey}", fontsize=8)
    return panels[0]


def _colours(cells: np.ndarray) -> tuple[dict[str, Any], str]:
    """What `imshow` is to do with values, and what of it the colour bar says."""
    finite = cells[np.isfinite(cells)]
    if not len(finite):
        return {"cmap": "viridis"}, "no values"
    low = float(np.percentile(finite, _TAIL, method="higher"))
    high = float(np.percentile(finite, 100 - _TAIL, method="lower"))
    low, high = min(low, high), max(low, high)
    said = f"colours from {low:.3g} to {high:.3g}, percentiles {_TAIL} and {100 - _TAIL}"
    if low < -0.1 * high:
        widest = max(-low, high)
        return {"cmap": "PuOr", "vmin": -widest, "vmax": widest}, f"{said}; white is 0"
    if low == high:
        low, high = low - 0.5, high + 0.5
    return {"cmap": "viridis", "vmin": low, "vmax": high}, said


def _extend(cells: np.ndarray, colours: Mapping[str, Any]) -> str:
    below = "vmin" in colours and bool((cells < colours["vmin"]).any())
    above = "vmax" in colours and bool((cells > colours["vmax"]).any())
    return {(True, True): "both", (True, False): "min", (False, True): "max"}.get((below, above), "neither")


def _panels(ax: Any, n: int) -> list[Axes]:
    """Axes for so many maps: those given, or of a figure."""
    if ax is not None and not hasattr(ax, "add_subplot"):
        if n > 1:
            raise KrsError(f"there are {n} maps to draw, and one pair of axes: name one of them with setting=")
        return [ax]
    if ax is None:
        require("matplotlib", "plot", "a figure")
        import matplotlib.pyplot as plt

        ax = plt.figure(figsize=_SIZE, layout="constrained")
    if tuple(ax.get_size_inches()) == _SIZE:
        ax.set_size_inches(_SIZE[0] * (1 + 0.55 * (n - 1)), _SIZE[1])
    return list(ax.subplots(1, n, squeeze=False, sharey=True)[0])


def _name_ticks(axes: Axes, which: str, names: Sequence[str], every: bool = False) -> None:
    """Names of rows or columns, as many as there is room for, or all of them."""
    step = 1 if every else max(1, -(-len(names) // _TICKS))
    at = list(range(0, len(names), step))
    turned: dict[str, Any] = {"rotation": 90, "fontsize": 7} if every else {}
    labels = [names[i].replace("$", "\\$") for i in at]
    (axes.set_xticks if which == "x" else axes.set_yticks)(at, labels, **turned)


def _whole_numbers(axis: Any) -> None:
    """Layers are whole numbers."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(integer=True))


def plot_drift(drift: HasFrame, value: str = "relative_change", ax: Axes | None = None) -> Axes:
    """A heat map of how far weights have moved: components over layers, what is outside the layers at the left.

    Args:
        drift: of `krs.metrics.drift`.
        value: `"relative_change"`, `"cosine"` or `"identical"`.
        ax: axes to draw on; new ones if not given.
    """
    if value not in ("relative_change", "cosine", "identical"):
        raise KrsError(f"value={value!r}: choose 'relative_change', 'cosine' or 'identical'")
    axes = _axes(ax)
    table = drift.frame.pivot_table(index="component", columns="layer", values=value, sort=False)
    layers = sorted(int(layer) for layer in table.columns)
    table = table[layers]
    image = axes.imshow(table.to_numpy(), aspect="auto", cmap="viridis", interpolation="nearest")
    axes.set_yticks(range(len(table)), [str(c).replace("_", " ") for c in table.index])
    shown = range(0, len(layers), max(1, len(layers) // 10))
    axes.set_xticks(list(shown), ["outside" if layers[i] < 0 else str(layers[i]) for i in shown])
    axes.set_xlabel("Layer")
    axes.figure.colorbar(image, ax=axes, label=value.replace("_", " "))
    return axes


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
    axes = _axes(ax)
    for i, (name, found) in enumerate(tables.items()):
        x, y = ([table.bleu[side] for table in found] for side in ("target", "unrelated"))
        colour, sizes = _COLOURS[i % len(_COLOURS)], np.linspace(28, 80, len(found))
        axes.plot(x, y, color=colour, linewidth=0.9, alpha=0.6, zorder=1)
        style: dict[str, Any] = {"s": sizes, "color": colour, "marker": _MARKERS[i % len(_MARKERS)], "zorder": 2}
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


def plot_curves(table: DataFrame, ax: Axes | None = None) -> Axes:
    """Fig. 1 over many cells: each setting's mean, a standard deviation between cells as a band, every cell behind.

    Args:
        table: a row a cell, setting and window, with columns `cell`, `setting`, `window` and `krs`.
        ax: axes to draw on; new ones if not given.
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
        labels=[str(s) for s in settings],
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


def plot_points(table: DataFrame, ax: Axes | None = None) -> Axes:
    """Fig. 2 from a table: BLEU on target questions (x) and on unrelated ones (y), a colour a method.

    Args:
        table: a row a point, with columns `method`, `target`, `unrelated`, `target_ceiling` and `unrelated_ceiling`
            (BLEU, 0 to 100); a line joins a method's points in the table's order, and markers grow along it.
        ax: axes to draw on; new ones if not given.
    """
    axes = _axes(ax)
    for i, (method, part) in enumerate(table.groupby("method", sort=False)):
        colour, sizes = _COLOURS[i % len(_COLOURS)], np.linspace(28, 80, len(part))
        axes.plot(part.target, part.unrelated, color=colour, linewidth=0.9, alpha=0.6, zorder=1)
        style: dict[str, Any] = {"s": sizes, "color": colour, "marker": _MARKERS[i % len(_MARKERS)], "zorder": 2}
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


def save_curves(table: DataFrame, path: Path) -> None:
    """Draw `plot_curves` into a file, without touching pyplot."""
    _drawn(lambda axes: plot_curves(table, axes), path)


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

    figure = Figure(figsize=_SIZE, layout="constrained")
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


def _places(names: Sequence[Any]) -> tuple[np.ndarray, set[int]]:
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


def _axes(ax: Any) -> Axes:
    """The axes given, or axes of an empty figure that was given; else of a pyplot figure, which a notebook shows."""
    if ax is None:
        require("matplotlib", "plot", "a figure")
        import matplotlib.pyplot as plt

        return plt.subplots(figsize=_SIZE, layout="constrained")[1]
    found: Axes = ax.add_subplot() if hasattr(ax, "add_subplot") else ax
    return found
