"""Studies: a grid of models x concepts x methods x strengths x seeds that resumes. Needs the extra `krs[study]`."""

from krs.extras import require

require("pydantic", "study", "a study")
require("yaml", "study", "a study")

from krs.study import dissecting, measuring, restored, saying, teaching, training  # noqa: E402, F401 - they register
from krs.study.carry import Outcome  # noqa: E402
from krs.study.exported import Exported, export, load_exported  # noqa: E402
from krs.study.grid import Cell, cells  # noqa: E402
from krs.study.ray_runner import Ray  # noqa: E402
from krs.study.read import read_spec  # noqa: E402
from krs.study.run import Study, load, run  # noqa: E402
from krs.study.runner import Runner  # noqa: E402
from krs.study.spec import Part, Spec  # noqa: E402
from krs.study.step import Step, Work, register, steps  # noqa: E402

__all__ = [
    "Cell",
    "Exported",
    "Outcome",
    "Part",
    "Ray",
    "Runner",
    "Spec",
    "Step",
    "Study",
    "Work",
    "cells",
    "export",
    "load",
    "load_exported",
    "read_spec",
    "register",
    "run",
    "steps",
]
