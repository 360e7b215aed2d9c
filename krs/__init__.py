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

from importlib.metadata import version
from typing import TYPE_CHECKING

from krs._lazy import on_demand
from krs.errors import KrsError, KrsWarning

if TYPE_CHECKING:
    from krs import data, hooks, instruments, metrics, plots, study, unlearn
    from krs.generation import Generated, Spoken, generate, speak
    from krs.hooks.library import (
        ATTN_ADDED,
        ATTN_KEY,
        ATTN_OUT,
        ATTN_QUERY,
        ATTN_VALUE,
        ATTN_WEIGHTS,
        EMBEDDING,
        EXPERTS,
        HEAD_OUT,
        KEYS,
        MLP_ADDED,
        MLP_COEF,
        MLP_OUT,
        MOE_OUT,
        NORMS,
        RESID,
        RESID_PRE,
        ROUTER,
        UNEMBEDDING,
        VALUE_VECTORS,
        WEIGHTS,
    )
    from krs.instruments.dissect import dissect
    from krs.metrics import Account, account
    from krs.models import load
    from krs.reports import report
    from krs.restore import (
        Compared,
        MeanResult,
        Plan,
        SweepResult,
        compare,
        concat,
        load_result,
        mean,
        patch_sweep,
        sweep,
        windows,
    )

__version__ = version("krs")

__all__ = [
    "ATTN_ADDED",
    "ATTN_KEY",
    "ATTN_OUT",
    "ATTN_QUERY",
    "ATTN_VALUE",
    "ATTN_WEIGHTS",
    "EMBEDDING",
    "EXPERTS",
    "HEAD_OUT",
    "KEYS",
    "MLP_ADDED",
    "MLP_COEF",
    "MLP_OUT",
    "MOE_OUT",
    "NORMS",
    "RESID",
    "RESID_PRE",
    "ROUTER",
    "UNEMBEDDING",
    "VALUE_VECTORS",
    "WEIGHTS",
    "Account",
    "Compared",
    "Generated",
    "KrsError",
    "KrsWarning",
    "MeanResult",
    "Plan",
    "Spoken",
    "SweepResult",
    "account",
    "compare",
    "concat",
    "data",
    "dissect",
    "generate",
    "hooks",
    "instruments",
    "load",
    "load_result",
    "mean",
    "metrics",
    "patch_sweep",
    "plots",
    "report",
    "speak",
    "study",
    "sweep",
    "unlearn",
    "windows",
]

__getattr__, __dir__ = on_demand(
    __name__,
    {
        **{room: f"krs.{room}" for room in ("data", "hooks", "instruments", "metrics", "plots", "study", "unlearn")},
        "windows": "krs.restore.windows",
        **dict.fromkeys(("Generated", "Spoken", "generate", "speak"), "krs.generation:"),
        **dict.fromkeys((name for name in __all__ if name.isupper()), "krs.hooks.library:"),
        "dissect": "krs.instruments:",
        **dict.fromkeys(("Account", "account"), "krs.metrics:"),
        "load": "krs.models:",
        "report": "krs.reports:",
        **dict.fromkeys(("Compared", "MeanResult", "Plan", "SweepResult"), "krs.restore:"),
        **dict.fromkeys(("compare", "concat", "load_result", "mean", "patch_sweep", "sweep"), "krs.restore:"),
    },
)
