"""A step that fails on one concept; it stands in a module of its own, as workers need it."""

import os

from krs import study
from krs.writing import write_text


class Options(study.Part):
    """`fails_on`: the concept's label."""

    fails_on: str


@study.register("choosy")
class Choosy(study.Step):
    """Writes which process it ran in."""

    needs = ("prepare",)
    options = Options

    def inputs(self, cell, spec, options):
        return {"concept": cell.concept, "fails_on": options.fails_on}

    def run(self, work):
        if work.cell.concept == work.options.fails_on:
            raise RuntimeError(f"no {work.cell.concept}s")
        write_text(work.folder / "pid.txt", str(os.getpid()))
        return work.cell.concept
