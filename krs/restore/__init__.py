"""Windows, plans, engines, sweeps and their results, and generation with pieces put back."""

from krs.restore.generate import Generated, generate
from krs.restore.losses import Losses
from krs.restore.plan import PAPER_SETTINGS, Plan, Restoration
from krs.restore.result import SweepResult
from krs.restore.storage import load_result
from krs.restore.sweep import sweep
from krs.restore.windows import Shape, Window

__all__ = [
    "PAPER_SETTINGS",
    "Generated",
    "Losses",
    "Plan",
    "Restoration",
    "Shape",
    "SweepResult",
    "Window",
    "generate",
    "load_result",
    "sweep",
]
