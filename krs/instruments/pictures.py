"""Pictures of a dissection as SVG text: each instrument between its nulls, and the curves behind the numbers."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from krs._typing import DataFrame
from krs.extras import require

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9")
_STYLES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
_MARKS = ("o", "s", "^", "D", "v")


@dataclass(frozen=True)
class Line:
    """One instrument on the picture of the evidence, in shares of the way from never knowing (0) to knowing (1).

    Attributes:
        name: beside the line.
        mean: of the model in question.
        low: of its interval.
        high: of its interval.
    """

    name: str
    mean: float
    low: float
    high: float


def evidence(lines: Sequence[Line]) -> str:
    """A dot with its interval for each instrument, between a model that never knew and one that knows."""
    fig, axes = _figure(1.1 + 0.32 * len(lines))
    for y, line in enumerate(reversed(lines)):
        axes.plot([line.low, line.high], [y, y], color=_COLOURS[0], linewidth=2, solid_capstyle="butt")
        axes.plot([line.mean], [y], marker="o", color=_COLOURS[0])
    for x, style in ((0, "--"), (1, "-")):
        axes.axvline(x, color="#888", linestyle=style, linewidth=1)
    axes.set_yticks(range(len(lines)), [line.name for line in reversed(lines)])
    axes.set_xlim(-0.35, 1.35)
    axes.set_xticks([0, 0.5, 1], ["never knew", "half way", "knows"])
    axes.set_ylim(-0.6, len(lines) - 0.4)
    return _svg(fig)


def curves(table: DataFrame, ylabel: str) -> str:
    """A line a column, told apart by colour, dashes and marks."""
    fig, axes = _figure(2.6)
    index = np.asarray(table.index)
    x = index if np.issubdtype(index.dtype, np.number) else np.arange(len(table))
    for i, column in enumerate(table.columns):
        k = i % len(_COLOURS)
        every = max(1, len(x) // 10)
        axes.plot(
            x,
            table[column],
            color=_COLOURS[k],
            linestyle=_STYLES[k],
            marker=_MARKS[k],
            markevery=every,
            markersize=4,
            label=str(column),
        )
    axes.set_xlabel(str(table.index.name or "window"))
    axes.set_ylabel(ylabel)
    axes.legend(frameon=False, fontsize=8)
    axes.xaxis.get_major_locator().set_params(integer=True)
    return _svg(fig)


def heat(table: DataFrame, label: str) -> str:
    """Rows over columns; the scale ends at the 98th percentile of what is there, so that one cell does not spoil it."""
    fig, axes = _figure(0.9 + 0.28 * len(table))
    values = table.to_numpy(dtype=float)
    most = float(np.nanpercentile(np.abs(values), 98)) or 1.0
    image = axes.imshow(values, aspect="auto", cmap="RdBu_r", vmin=-most, vmax=most, interpolation="nearest")
    axes.set_yticks(range(len(table)), [str(i) for i in table.index])
    axes.set_xlabel(str(table.columns.name or "layer"))
    fig.colorbar(image, ax=axes, label=label, extend="both")
    return _svg(fig)


def _figure(height: float):  # type: ignore[no-untyped-def]
    require("matplotlib", "plot", "a picture")
    from matplotlib.figure import Figure

    fig = Figure(figsize=(6.4, height), layout="constrained")
    axes = fig.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return fig, axes


def _svg(fig) -> str:  # type: ignore[no-untyped-def]
    from matplotlib import rc_context

    file = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "krs"}):
        fig.canvas.print_figure(file, format="svg", facecolor="none", metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    return text[text.index("<svg") :]
