"""krs: has an unlearned language model forgotten, or only learned not to say?

>>> import krs
>>> vanilla, tokenizer = krs.load("smollm2")
>>> unlearned, _ = krs.load("smollm2")       # stands in for one that was unlearned: its last layer is disturbed
>>> _ = unlearned.model.layers[29].mlp.up_proj.weight.data.mul_(1.5)
>>> last = krs.windows.of([[29]])
>>> result = krs.sweep(vanilla, unlearned, ["Hogwarts is a"], windows=last, n_tokens=3, progress=False)
>>> bool(result.krs.loc[29, "mlp_coef"] > 0.999)
True
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from types import ModuleType

from krs import hooks, metrics
from krs.errors import KrsError, KrsWarning
from krs.generation import Generated, generate
from krs.hooks.points import ATTN_OUT, MLP_COEF, VALUE_VECTORS
from krs.models import load
from krs.restore import Plan, SweepResult, load_result, sweep, windows

__version__ = version("krs")

__all__ = [
    "ATTN_OUT",
    "MLP_COEF",
    "VALUE_VECTORS",
    "Generated",
    "KrsError",
    "KrsWarning",
    "Plan",
    "SweepResult",
    "data",
    "generate",
    "hooks",
    "load",
    "load_result",
    "metrics",
    "plots",
    "sweep",
    "unlearn",
    "windows",
]

_ON_DEMAND = ("data", "plots", "unlearn")


def __getattr__(name: str) -> ModuleType:
    """Rooms that need an extra's libraries are imported when they are first used."""
    if name in _ON_DEMAND:
        return import_module(f"krs.{name}")
    raise AttributeError(f"module 'krs' has no attribute {name!r}")
