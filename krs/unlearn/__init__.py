"""Unlearning methods as plugins on one `transformers.Trainer`. Needs the extra `krs[unlearn]`."""

from krs.unlearn import dpo, ga, grad_diff, memit, npo
from krs.unlearn.config import Config, EditConfig
from krs.unlearn.examples import Text
from krs.unlearn.methods import Edit, Method, Plugin, Side, methods, register
from krs.unlearn.run import run
from krs.unlearn.saving import REPORT

__all__ = [
    "REPORT",
    "Config",
    "Edit",
    "EditConfig",
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
    "run",
]
