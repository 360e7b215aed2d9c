"""Windows, plans, engines, sweeps and their results."""

from krs.restore.averaging import MeanResult, mean
from krs.restore.compared import Compared, compare
from krs.restore.engines import register_engine
from krs.restore.joining import concat
from krs.restore.loading import load_result
from krs.restore.losses import Losses
from krs.restore.patching import patch_sweep
from krs.restore.plan import PAPER_SETTINGS, Plan, Restoration
from krs.restore.result import SweepResult
from krs.restore.shards import RayEngine
from krs.restore.sweep import sweep
from krs.restore.windows import Shape, Window

__all__ = [
    "PAPER_SETTINGS",
    "Compared",
    "Losses",
    "MeanResult",
    "Plan",
    "RayEngine",
    "Restoration",
    "Shape",
    "SweepResult",
    "Window",
    "compare",
    "concat",
    "load_result",
    "mean",
    "patch_sweep",
    "register_engine",
    "sweep",
]
