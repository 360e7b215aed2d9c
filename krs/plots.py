"""Figures. The only room that imports matplotlib (extra `krs[plot]`)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from krs._typing import Axes, DataFrame
from krs.errors import KrsError
from krs.extras import installed, missing, require
from krs.metrics.answers import Answers
from krs.metrics.drift import Drift
from krs.restore.result import SweepResult
from krs.restore.windows import ENDS
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


def plot_sweep(result: SweepResult, ax: Axes | None = None) -> Axes:
    """The paper's Fig. 1: the score of each setting over the layers, with lines at none (0) and full recovery (1).

    Args:
        result: of `krs.sweep`.
        ax: axes to draw on; new ones if not given.

    Returns the axes. In a notebook the figure shows itself; `ax.figure.savefig("fig1.png")` saves it.
    """
    axes = ax if ax is not None else _new_axes()
    table = result.recovery()
    names = [w.name for w in result.plan.windows]
    x, numeric = _places(names)
    for i, setting in enumerate(result.plan.settings):
        there = [window for of, window in result.plan.cells if of == i]
        axes.plot(
            x[there],
            table[setting.name].to_numpy()[there],
            label=setting.label,
            color=_COLOURS[i % len(_COLOURS)],
            marker=_MARKERS[i % len(_MARKERS)],
            markersize=3.5,
            linewidth=1.6,
        )
    for level in (0.0, 1.0):
        axes.axhline(level, color="black", linewidth=0.8, linestyle=":", zorder=0)
    if not numeric or not all(isinstance(n, int) for n in names):
        shown = [i for i, n in enumerate(names) if not isinstance(n, int) or len(names) <= _TICKS or n % 5 == 0]
        axes.set_xticks(x[shown], [str(names[i]) for i in shown], rotation=45, ha="right")
    axes.set_xlabel(_x_label(result, numeric))
    axes.set_ylabel("Knowledge Recovery Score" if result.direction == "restore" else "Recovery of the logit MSE")
    lowest = np.nanmin(table.to_numpy(), initial=0.0)
    highest = np.nanmax(table.to_numpy(), initial=1.0)
    axes.set_ylim(min(-0.05, lowest - 0.05), max(1.05, highest + 0.05))
    axes.set_title(
        f"{counted(len(result.losses.mask), 'prompt')}, {counted(int(result.losses.mask.sum()), 'scored token')}",
        fontsize=9,
    )
    axes.legend(frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.07), ncols=2)
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def plot_drift(drift: Drift, value: str = "relative_change", ax: Axes | None = None) -> Axes:
    """A heat map of how far weights have moved: components over layers, what is outside the layers at the left.

    Args:
        drift: of `krs.metrics.drift`.
        value: `"relative_change"`, `"cosine"` or `"identical"`.
        ax: axes to draw on; new ones if not given.
    """
    if value not in ("relative_change", "cosine", "identical"):
        raise KrsError(f"value={value!r}: choose 'relative_change', 'cosine' or 'identical'")
    axes = ax if ax is not None else _new_axes()
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


def plot_tradeoff(points: Mapping[str, Sequence[Answers]], ax: Axes | None = None) -> Axes:
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
    axes = ax if ax is not None else _new_axes()
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
    axes = ax if ax is not None else _new_axes()
    windows = list(dict.fromkeys(table.window))
    numeric = all(isinstance(w, int | np.integer) for w in windows)
    x = np.array(windows if numeric else range(len(windows)), dtype=float)
    for i, setting in enumerate(dict.fromkeys(table.setting)):
        part = table[table.setting == setting]
        curves = part.pivot_table(index="window", columns="cell", values="krs", sort=False, dropna=False).loc[windows]
        colour, values = _COLOURS[i % len(_COLOURS)], curves.to_numpy(dtype=float)
        axes.plot(x, values, color=colour, linewidth=0.5, alpha=0.25, zorder=1)
        mean, spread = curves.mean(axis=1).to_numpy(), curves.std(axis=1, ddof=1).fillna(0).to_numpy()
        axes.fill_between(x, mean - spread, mean + spread, color=colour, alpha=0.18, linewidth=0, zorder=2)
        style: dict[str, Any] = {
            "marker": _MARKERS[i % len(_MARKERS)],
            "markersize": 3.5,
            "linewidth": 1.6,
            "zorder": 3,
        }
        axes.plot(x, mean, label=str(setting), color=colour, **style)
    for level in (0.0, 1.0):
        axes.axhline(level, color="black", linewidth=0.8, linestyle=":", zorder=0)
    if not numeric:
        axes.set_xticks(x, [str(w) for w in windows], rotation=45, ha="right")
    axes.set_xlabel("Layer")
    axes.set_ylabel("Knowledge Recovery Score")
    axes.set_title(f"mean of {counted(table.cell.nunique(), 'cell')}; band: ± 1 SD between cells", fontsize=9)
    axes.legend(frameon=False, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.07), ncols=2)
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def plot_points(table: DataFrame, ax: Axes | None = None) -> Axes:
    """Fig. 2 from a table: BLEU on target questions (x) and on unrelated ones (y), a colour a method.

    Args:
        table: a row a point, with columns `method`, `target`, `unrelated`, `target_ceiling` and `unrelated_ceiling`
            (BLEU, 0 to 100); a line joins a method's points in the table's order, and markers grow along it.
        ax: axes to draw on; new ones if not given.
    """
    axes = ax if ax is not None else _new_axes()
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
    require("matplotlib", "plot", "a figure")
    from matplotlib.figure import Figure

    figure = Figure(figsize=_SIZE, layout="constrained")
    draw(figure.add_subplot())
    with replacing(path) as unfinished:
        figure.savefig(unfinished, dpi=150)


def save_figure(result: SweepResult | Drift | Mapping[str, Sequence[Answers]], path: Path) -> None:
    """Draw a sweep (Fig. 1), answers (Fig. 2) or a drift into a file, without touching pyplot.

    The ending of the file's name says which kind of picture it is.
    """
    require("matplotlib", "plot", "a figure")
    from matplotlib.figure import Figure

    figure = Figure(figsize=_SIZE, layout="constrained")
    axes = figure.add_subplot()
    if isinstance(result, Drift):
        plot_drift(result, ax=axes)
    elif isinstance(result, Mapping):
        plot_tradeoff(result, axes)
    else:
        plot_sweep(result, axes)
    with replacing(path) as unfinished:
        figure.savefig(unfinished, dpi=150)


def save_figure_or_say(result: SweepResult | Drift | Mapping[str, Sequence[Answers]], path: Path) -> list[str]:
    """`save_figure` where matplotlib is installed; otherwise the error output says that the figure was left out.

    Returns the names of the files that were written.
    """
    if not installed("matplotlib"):
        sys.stderr.write(f"{path.name} is left out: {missing('matplotlib', 'plot', 'a figure')}\n")
        return []
    save_figure(result, path)
    return [path.name]


def _places(names: Sequence[int | str]) -> tuple[np.ndarray, bool]:
    """Where windows stand on the x axis, and whether that is their layer: ends of the model beside the layers."""
    layers = [n for n in names if isinstance(n, int)]
    inside = [n for n in names if isinstance(n, str) and n not in ENDS]
    if inside or not layers:
        return np.arange(len(names)), False
    before = names.index(layers[0])
    x = [n if isinstance(n, int) else min(layers) - before + i for i, n in enumerate(names[: before + len(layers)])]
    return np.array([*x, *(max(layers) + 1 + i for i in range(len(names) - len(x)))]), True


def _x_label(result: SweepResult, numeric: bool) -> str:
    widest = max(len(w) for w in result.plan.windows)
    if not numeric:
        return "Layers restored"
    return "Layer" if widest == 1 else f"Layer (window of up to {widest} layers)"


def _new_axes() -> Axes:
    """Axes of a pyplot figure, which a notebook shows by itself."""
    require("matplotlib", "plot", "a figure")
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=_SIZE, layout="constrained")[1]
