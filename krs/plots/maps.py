"""Heat maps, whose scale one cell does not spoil."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from krs._typing import Axes, DataFrame
from krs.errors import KrsError
from krs.extras import require
from krs.plots.kinds import HasFrame
from krs.plots.style import SIZE, axes_for, name_ticks

_NONE = "0.8"
_TAIL = 2
"""Percent of the cells at either end of a map that the colours do not reach."""


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
        name_ticks(axes, "y", [str(n) for n in table.index])
        name_ticks(axes, "x", [str(c) for c in table.columns] if ticks is None else list(ticks), ticks is not None)
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

        ax = plt.figure(figsize=SIZE, layout="constrained")
    if tuple(ax.get_size_inches()) == SIZE:
        ax.set_size_inches(SIZE[0] * (1 + 0.55 * (n - 1)), SIZE[1])
    return list(ax.subplots(1, n, squeeze=False, sharey=True)[0])


def plot_drift(drift: HasFrame, value: str = "relative_change", ax: Axes | None = None) -> Axes:
    """A heat map of how far weights have moved: components over layers, what is outside the layers at the left.

    Args:
        drift: of `krs.metrics.drift`.
        value: `"relative_change"`, `"cosine"` or `"identical"`.
        ax: axes to draw on; new ones if not given.
    """
    if value not in ("relative_change", "cosine", "identical"):
        raise KrsError(f"value={value!r}: choose 'relative_change', 'cosine' or 'identical'")
    axes = axes_for(ax)
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
