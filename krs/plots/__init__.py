"""Figures of tables. The only room that imports matplotlib (extra `krs[plot]`); it knows no other room.

`result.plot()`, `drift.plot()` and `answers.plot()` hand it their tables; what stands here takes tables, or things that
have one.
"""

from krs.plots.curves import mean_and_sd, plot_curves, plot_lines, plot_sweep
from krs.plots.kinds import Drawn, HasFrame, HasTable
from krs.plots.maps import plot_drift, plot_maps
from krs.plots.points import plot_points, plot_tradeoff
from krs.plots.saving import save_curves, save_drawn, save_figure, save_figure_or_say, save_points

__all__ = [
    "Drawn",
    "HasFrame",
    "HasTable",
    "mean_and_sd",
    "plot_curves",
    "plot_drift",
    "plot_lines",
    "plot_maps",
    "plot_points",
    "plot_sweep",
    "plot_tradeoff",
    "save_curves",
    "save_drawn",
    "save_figure",
    "save_figure_or_say",
    "save_points",
]
