"""Unlearning methods as plugins on one `transformers.Trainer`. Needs the extra `krs[unlearn]`."""

from krs.unlearn import dpo, ga, grad_diff, memit, npo, rmu, undial
from krs.unlearn.config import Config, EditConfig
from krs.unlearn.examples import Text
from krs.unlearn.methods import Edit, Method, Plugin, methods, register
from krs.unlearn.run import run
from krs.unlearn.saving import REPORT
from krs.unlearn.sides import Look, Side

__all__ = [
    "REPORT",
    "Config",
    "Edit",
    "EditConfig",
    "Look",
    "Method",
    "Plugin",
    "Side",
    "Text",
    "dpo",
    "ga",
    "grad_diff",
    "memit",
    "methods",
    "npo",
    "register",
    "rmu",
    "run",
    "undial",
]
