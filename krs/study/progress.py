"""How far a study is: what is done, what is left, and about what that will take."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from krs.study.carry import Carrier, most_memory
from krs.study.grid import Cell, cells
from krs.study.otherwise import Others
from krs.study.spec import Spec
from krs.study.step import TAUGHT, TWIN
from krs.study.store import Store
from krs.wording import counted, span

Kind = tuple[str, ...]


@dataclass
class Progress:
    """Of a study.

    Attributes:
        cells: how many there are, by state: `done`, `begun`, `failed`, `to do`.
        measured: seconds that finished steps took, by kind (step, model, method and strength).
        left: steps that are still to do, by kind; of shared results each once a cell.
        absent: models of the hub that have not been fetched, so that nothing is known of their cells.
        otherwise: by cell and step, in what a result that is there differs from what the spec asks for.
        memory: the most that a cell that is not done will need, in bytes; `None` where it cannot be known.
    """

    cells: Counter[str] = field(default_factory=Counter)
    measured: dict[Kind, list[float]] = field(default_factory=lambda: defaultdict(lambda: [0.0, 0.0]))
    left: Counter[Kind] = field(default_factory=Counter)
    memory: int | None = 0
    absent: set[str] = field(default_factory=set)
    otherwise: dict[str, dict[str, str]] = field(default_factory=lambda: defaultdict(dict))

    @property
    def seconds(self) -> tuple[float, int]:
        """What is left of the steps whose kind was measured, and how many steps there is no measurement of."""
        total, unknown = 0.0, 0
        for kind, n in self.left.items():
            if kind in self.measured:
                spent, times = self.measured[kind]
                total += n * spent / times
            else:
                unknown += n
        return total, unknown

    def __str__(self) -> str:
        states = ", ".join(f"{n:,} {state}" for state, n in sorted(self.cells.items())) or "no cells"
        lines = [f"{counted(self.cells.total(), 'cell')}: {states}"]
        if self.left:
            known, unknown = self.seconds
            size = "unknown" if self.memory is None else f"about {self.memory / 1e9:.2f} GB, from checkpoint headers"
            rest = f"{counted(unknown, 'step')} of a kind that has not been measured yet" if unknown else ""
            time = f"about {span(known)}" if known or not unknown else "unknown"
            lines += [
                f"memory: {size}",
                f"time left: {time}{f' and {rest}' if known and rest else rest and f' ({rest})'}",
            ]
        if self.absent:
            few, more = sorted(self.absent)[:2], len(self.absent) - 2
            lines.append(f"not fetched yet: {', '.join(few)}{f' and {more} more models' if more > 0 else ''}")
        return "\n".join(lines)


def look(spec: Spec, store: Store, progress: Progress) -> Iterator[tuple[Cell, str, dict[str, bool]]]:
    """Each cell with its state and, by step, whether that is done; counts it all into `progress`.

    Manifests are read, artefacts are not. Models that are not here are not fetched.
    """
    carrier, others = Carrier(spec, store, fetch=False, absent=progress.absent), Others(store)
    for cell in cells(spec):
        done: dict[str, bool] = {}
        for made, inputs, _, found in carrier.asked(cell):
            kind = (
                (made.name, cell.model)
                if made.name in ("prepare", TAUGHT, TWIN)
                else (made.name, cell.model, cell.method, cell.strength)
            )
            done[made.name] = found is not None
            if found is None:
                progress.left[kind] += 1
                if inputs is not None and (what := others.of(made.name, cell, inputs)) is not None:
                    progress.otherwise[cell.name][made.name] = what
            else:
                spent = progress.measured[kind]
                spent[0] += found.seconds
                spent[1] += 1
        state = "done" if all(done.values()) else "begun" if any(done.values()) else "to do"
        if state != "done":
            _count_memory(spec, cell, done, progress)
            state = "failed" if store.failed(cell) is not None else state
        progress.cells[state] += 1
        yield cell, state, done


def _count_memory(spec: Spec, cell: Cell, done: dict[str, bool], progress: Progress) -> None:
    needed = most_memory(spec, cell, [name for name, there in done.items() if not there])
    known = needed is not None and progress.memory is not None
    progress.memory = max(progress.memory or 0, needed or 0) if known else None
