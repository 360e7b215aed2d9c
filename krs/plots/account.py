"""The picture of an account: components over layers. Takes plain arrays; needs matplotlib (extra `krs[plot]`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from krs._typing import Axes
from krs.extras import require
from krs.plots.described import write

_SHOWN = 98
"""Percent of the cells, by size, that the colours reach: a single large one does not make all others pale."""


def draw_account(
    shares: np.ndarray, components: Sequence[str], layers: Sequence[int], title: str = "", ax: Axes | None = None
) -> Axes:
    """A heat map of shares, red where restoring weights helps and blue where it harms.

    >>> axes = draw_account(np.array([[0.7, np.nan], [0.1, 0.2]]), ["keys", "norms"], [0, -1])
    >>> [label.get_text() for label in axes.get_xticklabels()]
    ['0', 'outside']

    Args:
        shares: `[component, layer]`, NaN where a component has nothing.
        components: names of the rows.
        layers: numbers of the columns, -1 for what is outside the layers.
        title: above the picture.
        ax: axes to draw on; new ones if not given.
    """
    axes = ax if ax is not None else _new_axes()
    sizes = np.abs(shares[np.isfinite(shares)])
    size = (float(np.percentile(sizes, _SHOWN, method="lower")) if len(sizes) else 0.0) or float(sizes.max(initial=0.0))
    size = size or 1.0
    image = axes.imshow(shares, aspect="auto", cmap="RdBu_r", vmin=-size, vmax=size, interpolation="nearest")
    axes.set_yticks(range(len(components)), [c.replace("_", " ") for c in components])
    shown = [i for i, layer in enumerate(layers) if layer < 0 or i % max(1, len(layers) // 10) == 0]
    if len(shown) > 1 and shown[-1] - shown[-2] < max(1, len(layers) // 10):
        del shown[-2]
    axes.set_xticks(shown, ["outside" if layers[i] < 0 else str(layers[i]) for i in shown])
    axes.set_xlabel("Layer")
    if title:
        axes.set_title(title, fontsize=9)
    beyond = [bool((values > size).any()) for values in (-shares, shares)]
    extend = {(True, True): "both", (True, False): "min", (False, True): "max"}.get((beyond[0], beyond[1]), "neither")
    said = f"\ncolours end at ± {size:.2g}, percentile {_SHOWN}" if any(beyond) else ""
    axes.figure.colorbar(image, ax=axes, label=f"share of the logit MSE{said}", extend=extend)
    return axes


def save_account(
    shares: np.ndarray,
    components: Sequence[str],
    layers: Sequence[int],
    title: str,
    path: str | Path,
    *,
    name: str,
    description: str,
) -> None:
    """Draw `draw_account` into a file, without touching pyplot; `name` and `description` say what is on it."""
    require("matplotlib", "plot", "a figure")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    draw_account(shares, components, layers, title, figure.add_subplot())
    write(figure, path, name, description, dpi=150)


def _new_axes() -> Axes:
    require("matplotlib", "plot", "a figure")
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=(6.4, 3.8), layout="constrained")[1]
