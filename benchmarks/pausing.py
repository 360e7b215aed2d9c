"""A step that does nothing but wait: what a study costs beside its cells. In a module of its own, for Ray's workers."""

from __future__ import annotations

import time
from typing import Any

from krs import study
from krs.study.grid import Cell
from krs.writing import write_text


class Pause(study.Part):
    """`seconds` to wait."""

    seconds: float = 0.0


@study.register("pausing")
class Pausing(study.Step):
    """Wait, then write the cell's name."""

    options = Pause

    def models(self, cell: Cell) -> dict[str, str]:
        """None."""
        return {}

    def inputs(self, cell: Cell, spec: study.Spec, options: Any) -> dict[str, Any]:
        """Each cell has a result of its own."""
        return {"cell": cell.name}

    def run(self, work: study.Work) -> str:
        """Wait."""
        time.sleep(work.options.seconds)
        write_text(work.folder / "name.txt", work.cell.name)
        return work.cell.name
