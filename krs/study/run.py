"""Run a study, and look at one."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from krs._typing import DataFrame
from krs.errors import KrsError
from krs.progress import going_on
from krs.study import figures
from krs.study.carry import Carrier, Outcome
from krs.study.grid import Cell, cell_named, cells, n_cells
from krs.study.progress import Progress, look
from krs.study.runner import Runner, local, runner
from krs.study.spec import Spec, read_spec
from krs.study.store import Store
from krs.wording import counted


@dataclass(frozen=True)
class Study:
    """A study's directory, with the spec that it was last run with.

    Attributes:
        spec: what was asked for.
        folder: where it is.
        failed: the cells that have failed in the run that returned this.
        written: names of the tables and figures that this run wrote into `folder/results/`.
    """

    spec: Spec
    folder: Path
    failed: list[Outcome] = field(default_factory=list)
    written: list[str] = field(default_factory=list)

    def table(self, name: str = "krs") -> DataFrame:
        """A row for each row of each cell's own table, the cell's place in the grid before it.

        Args:
            name: `"krs"` (a restoration a row), `"answers"` (a question a row), `"drift"` (a component and layer),
                `"dissect"` (an instrument), `"completions"` (a text) or `"vocabulary"` (a token of a value vector).
        """
        return figures.table(self.spec, Store(self.folder), name)

    def __str__(self) -> str:
        progress = Progress()
        for _ in look(self.spec, Store(self.folder), progress):
            pass
        return f"study in {self.folder}\n{progress}"


def run(
    spec: str | Path | Mapping[str, Any] | Spec,
    out: str | Path,
    runner: str | Runner = "local",
    *,
    progress: bool = True,
) -> Study:
    """Carry out a study, or what is left of it, and draw its figures.

    >>> from krs import study
    >>> asked = {"models": ["smollm2"], "concepts": ["paris"], "methods": ["ga"], "chat": True,
    ...          "steps": {"prepare": {"n_tokens": 4}}}
    >>> import tempfile
    >>> study.run(asked, tempfile.mkdtemp(), progress=False).failed
    []

    Args:
        spec: a YAML file, a mapping of the same shape, or a `Spec`. Docs: study.
        out: a directory. What it holds of this study is kept; a changed spec or input redoes what follows from it.
        runner: `"local"`, `"ray"` (or `study.Ray(address=…, cpus=…, gpus=…)`; docs: scale), or a `Runner` of yours.
        progress: a line a cell on stderr, and of steps that take longer one now and then.

    A cell that fails does not stop the others; the returned study names it (`failed`), and
    `folder/failed/CELL.json` has the traceback. Raises `KrsError` for a spec that is not right, before any work.
    """
    checked = read_spec(spec)
    carry = _runner(runner)
    store = Store(Path(out).resolve())
    carrier = Carrier(checked, store, aloud=progress)
    if store.begin(checked) and progress and carry is local:  # elsewhere this machine may not have the models
        _say_what_is_there(carrier, out)
    failed: list[Outcome] = []
    total, worked = n_cells(checked), False
    outcomes = carry(cells(checked), carrier)
    try:
        for i, outcome in enumerate(outcomes, 1):
            worked |= outcome.ended == "done"
            failed += [outcome] if outcome.ended == "failed" else []
            if progress and outcome.ended != "kept":
                sys.stderr.write(f"{i}/{total} {_line(outcome)}\n")
    except KeyboardInterrupt as stop:
        stop.add_note(f"what was done is in {str(out)!r}; the same call goes on from there")
        raise
    finally:
        getattr(outcomes, "close", lambda: None)()  # a runner's processes end before this returns or raises
    try:
        written = figures.write(checked, store, anew=worked)
    except KrsError as unwritten:
        unwritten.add_note(f"the cells themselves are kept; failed have {[outcome.cell for outcome in failed]}")
        raise
    return Study(checked, store.root, failed, written)


def _say_what_is_there(carrier: Carrier, out: str | Path) -> None:
    """How many steps of cells are done, from their manifests; of models that are not fetched yet none is."""
    looked = replace(carrier, fetch=False, absent=set())
    steps = done = whole = 0
    for cell in cells(carrier.spec):
        with suppress(Exception):  # whatever is wrong with a cell is told where it is carried out
            there = [found is not None for _, _, found in looked.states(cell)]
            steps, done, whole = steps + len(there), done + sum(there), whole + all(there)
    more = f"{whole:,} of {counted(n_cells(carrier.spec), 'cell')} whole"
    going_on({"step": (done, steps)}, str(out), show=True, more=more)


_runner = runner


def load(folder: str | Path) -> Study:
    """A study that was run before; raises `KrsError` for a directory without one."""
    store = Store(Path(folder).resolve())
    return Study(store.spec(), store.root)


def status(folder: str | Path) -> Iterator[str]:
    """A line a cell, then what is left."""
    study = load(folder)
    store = Store(study.folder)
    yield from listed(study.spec, store, f"{store.spec_file}, the spec as it was last run")


def listed(spec: Spec, store: Store, whose: str = "the spec that was given") -> Iterator[str]:
    """A line a cell with its state and the steps that are done, then counts, memory and time.

    Of a step that is not done as the spec asks for it, and done as another did, the line below says what differs.
    """
    progress = Progress()
    for cell, state, done in look(spec, store, progress):
        steps = " ".join(f"{name}{'' if there else '?'}" for name, there in done.items())
        yield f"{state:7} {cell.name}  {steps}"
        for step, what in progress.otherwise.get(cell.name, {}).items():
            yield f"        {step} is there, of another spec: {what}"
    yield str(progress)
    if progress.otherwise:
        yield f"'here' is {whose}"


def show(folder: str | Path, name: str) -> str:
    """All about one cell: its steps with where, when and how long, and why it has failed."""
    study = load(folder)
    store, cell = Store(study.folder), cell_named(study.spec, name)
    lines = [cell.name, *(f"  {k}: {v}" for k, v in _about(cell).items())]
    for made, _, found in Carrier(study.spec, store).states(cell, thorough=True):
        lines.append(f"{made.name}: " + ("not done" if found is None else f"{found.seconds:.1f} s, {found.made}"))
        if found is not None:
            place = store.folder(made.name, found.key)
            lines += [f"  {place}/: {', '.join([*found.artefacts, found.log])}"]
            lines += [f"  warning: {warning}" for warning in found.warnings]
    if failure := store.failed(cell):
        lines += [f"failed in {failure['step'] or 'preparation'} at {failure['time']}:", failure["traceback"]]
    return "\n".join(lines)


def _about(cell: Cell) -> dict[str, Any]:
    models = {"vanilla": cell.vanilla} | ({"unlearned": cell.unlearned} if cell.unlearned else {})
    return cell.where | {"settings": cell.settings} | models


def _line(outcome: Outcome) -> str:
    if outcome.ended == "failed":
        where = f" in {outcome.step}" if outcome.step else ""
        return f"{outcome.cell}: failed{where}: {outcome.error.splitlines()[0]}"
    return f"{outcome.cell}: {outcome.ended} in {outcome.seconds:.1f} s"
