"""The picture of a calibration: a mark a model, a line an instrument; it takes a plain table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from krs._typing import Axes, DataFrame
from krs.extras import require
from krs.plots.described import write

_KNOWS, _NEVER = "#0072b2", "#d55e00"


def plot_told(table: DataFrame, ax: Any = None) -> Axes:
    """Silent models by what each instrument reads of them: can it tell those that know from those that never knew?

    Each line is stretched from its lowest reading to its highest, knowing to the right.

    Args:
        table: columns `instrument`, `model`, `known` (true or false), `knowledge` (the reading, higher for more
            knowledge) and `auc`; lines stand in the order in which instruments come.
        ax: matplotlib axes; a new figure if not given.
    """
    require("matplotlib", "plot", "a figure")
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(table.instrument))
    if ax is None:
        ax = Figure(figsize=(7.2, 1.2 + 0.3 * len(names)), layout="constrained").subplots()
    for y, name in enumerate(reversed(names)):
        rows = table[table.instrument == name]
        least, most = rows.knowledge.min(), rows.knowledge.max()
        place = (rows.knowledge - least) / ((most - least) or 1.0)
        ax.plot([0, 1], [y, y], color="0.85", linewidth=1, zorder=0)
        for known, mark, colour, up in ((False, "v", _NEVER, -0.13), (True, "o", _KNOWS, 0.13)):
            at = place[rows.known == known]
            face = colour if known else "none"
            ax.scatter(at, [y + up] * len(at), marker=mark, s=34, edgecolors=colour, facecolors=face, linewidths=1.3)
        ax.text(1.07, y, f"{rows.auc.iloc[0]:.2f}", va="center", fontsize=9)
    ax.text(1.07, len(names) - 0.45, "AUC", fontsize=9, va="bottom")
    shown = {"krs": "KRS, the paper's score"}
    ax.set_yticks(range(len(names)), [shown.get(name, name) for name in reversed(names)])
    ax.set_ylim(-0.6, len(names) - 0.4)
    ax.set_xlim(-0.04, 1.2)
    ax.set_xticks([])
    ax.set_xlabel("reads less knowledge  ←  each line from its lowest to its highest  →  reads more", fontsize=9)
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)
    for mark, colour, face, label in (
        ("o", _KNOWS, _KNOWS, "knows, and does not say"),
        ("v", _NEVER, "none", "never knew"),
    ):
        ax.scatter([], [], marker=mark, edgecolors=colour, facecolors=face, label=label)
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2, frameon=False, fontsize=9)
    return ax


def save_told(table: DataFrame, path: str | Path) -> None:
    """`plot_told`, to a file, in one step, with what it shows in words."""
    write(plot_told(table).figure, path, *title_and_description(table), dpi=160, facecolor="white")


def title_and_description(table: DataFrame) -> tuple[str, str]:
    """A title of the picture, and a description: whom it has, and each instrument's AUC."""
    models = table.drop_duplicates("model")
    knowing = int(models.known.sum())
    aucs = table.drop_duplicates("instrument")
    shown = ", ".join(f"{row.instrument} {row.auc:.2f}" for row in aucs.itertuples())
    title = "Silent models by what instruments read of them"
    return title, (
        f"Silent models (that know: {knowing}, that never knew: {len(models) - knowing}) on a line for each "
        f"instrument, more knowledge to the right. AUC, 1 where all that know stand to the right: {shown}."
    )
