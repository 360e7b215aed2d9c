"""Figures of docs/reproduction.md: python figures.py results/*.json -o ../../docs/img"""

import argparse
from pathlib import Path

from matplotlib.figure import Figure

from krs.plots import plot_curves, plot_points
from krs.study import Exported, load_exported
from krs.study.curves import label_of
from krs.study.figures import points

PANELS = {
    "fig1": {
        "GradDiff and both DPOs, as in the paper": ("grad_diff", "dpo_idk", "dpo_retain_text"),
        "NPO": ("npo",),
        "MEMIT, which changes value vectors only": ("memit_empty",),
    },
    "value_vectors": {
        "Value vectors alone were trained": ("value vectors alone",),
        "Attention alone was trained": ("attention alone",),
    },
}


def curves(study: Exported, panels: dict) -> Figure:
    """A panel for each group of methods: mean, standard deviation between cells, every cell behind."""
    table = study.table("krs")
    figure = Figure(figsize=(5.2 * len(panels), 4.2), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True)
    for ax, (title, methods) in zip(axes, panels.items(), strict=True):
        plot_curves(table[table.method.isin(methods)], ax, label=label_of)
        ax.set_title(title, fontsize=10)
    return figure


def behaviour(study: Exported) -> Figure:
    """Fig. 2."""
    figure = Figure(figsize=(6.4, 4.8), layout="constrained")
    plot_points(points(study.table("answers")), figure.subplots())
    return figure


def main() -> None:
    """Draw what there is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("-o", "--out", type=Path, default=Path())
    asked = parser.parse_args()
    for file in asked.files:
        study = load_exported(file)
        if file.stem == "fig1":
            behaviour(study).savefig(asked.out / "reproduction_behaviour.png", dpi=120)
        if file.stem in PANELS:
            curves(study, PANELS[file.stem]).savefig(asked.out / f"reproduction_{file.stem}.png", dpi=120)
        elif file.stem == "fig2":
            behaviour(study).savefig(asked.out / "reproduction_fig2.png", dpi=120)


if __name__ == "__main__":
    main()
