"""One cell, carried out: what is there already is kept, the rest is done, step by step."""

from __future__ import annotations

import sys
import time
import traceback
import warnings
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from filelock import Timeout

from krs.errors import KrsError, KrsWarning
from krs.models.provenance import now
from krs.progress import heard
from krs.study.checkpoints import files_of, identity_of
from krs.study.grid import Cell
from krs.study.manifest import LOG, NAME, Manifest, artefacts
from krs.study.spec import Spec, options_of
from krs.study.step import TAUGHT, TWIN, Step, Work, everything_that_counts, key_of, needs_of, step
from krs.study.store import Store
from krs.writing import clear_unfinished

Ended = Literal["done", "kept", "failed", "busy"]


@dataclass(frozen=True)
class Outcome:
    """How a cell ended: `done` now, `kept` from before, `failed`, or `busy` in another process."""

    cell: str
    ended: Ended
    step: str = ""
    error: str = ""
    seconds: float = 0.0


class _Gone(Exception):  # noqa: N818 - not an error
    """A result that a later step needs was dropped, and is made again."""


class _StepFailed(Exception):  # noqa: N818 - not shown to anybody
    def __init__(self, name: str) -> None:
        self.name = name


@dataclass
class Carrier:
    """Carries out cells of one study; a runner calls it, with or without waiting for another process's cell."""

    spec: Spec
    store: Store
    failures: dict[str, BaseException] = field(default_factory=dict)
    """Of results that several cells need, by key: the first failure stands for all in one run."""
    models: dict[str, dict[str, Any]] = field(default_factory=dict)
    """The identity of each model by its name."""
    fetch: bool = True
    """Whether a model of the hub that is not here is fetched to tell which one it is; else nothing of it is done."""
    absent: set[str] = field(default_factory=set)
    """Names of models that are not here, where they are not fetched."""
    aloud: bool = False
    """Whether lines of long stages, which go into a step's log, go to stderr too, behind the cell's name."""

    def __call__(self, cell: Cell, wait: bool) -> Outcome:
        """Do what there is to do of a cell; whatever goes wrong in it is noted, and not raised."""
        begun = time.monotonic()
        try:
            if self._is_done(cell):
                return Outcome(cell.name, "kept")
            try:
                lock = self.store.lock(cell.name)
                with lock.acquire(timeout=-1 if wait else 0):
                    worked = self._carried_out(cell)
            except Timeout:
                return Outcome(cell.name, "busy")
            self.store.mend(cell)
            return Outcome(cell.name, "done" if worked else "kept", seconds=time.monotonic() - begun)
        except Exception as reason:  # noqa: BLE001 - the other cells go on
            return self._noted(cell, reason, time.monotonic() - begun)

    def states(self, cell: Cell, thorough: bool = False) -> Iterator[tuple[Step, str | None, Manifest | None]]:
        """Each step that the cell has, with the key of its result and its manifest; `None` where it is not there."""
        for made, _, key, found in self.asked(cell, thorough):
            yield made, key, found

    def asked(
        self, cell: Cell, thorough: bool = False
    ) -> Iterator[tuple[Step, dict[str, Any] | None, str | None, Manifest | None]]:
        """The same, with what each step's result follows from, as far as the steps before it are there."""
        before: dict[str, Manifest] = {}
        every = list(steps_of(self.spec, cell))
        names = {made.name for made, _ in every}
        for made, options in every:
            inputs = key = found = None
            if names.intersection(needs_of(made, cell)) <= before.keys():
                inputs = everything_that_counts(made, cell, self.spec, options, before, self.identity)
                key = key_of(inputs)
                found = self.store.find(made.name, key, thorough=thorough)
            if found is not None:
                before[made.name] = found
            yield made, inputs, key, found

    def left(self, cell: Cell) -> tuple[bool, int | None]:
        """Whether there is something to do of a cell, and the most bytes that one of its open steps needs."""
        unfinished = {made.name for made, _, found in self.states(cell) if found is None}
        return not self._is_done(cell), most_memory(self.spec, cell, unfinished)

    def failed(self, cell: Cell, reason: Exception) -> Outcome:
        """Note that a cell has failed by what befell it from outside, such as the loss of the machine it was on."""
        return self._noted(cell, reason, 0.0)

    def identity(self, name: str) -> dict[str, Any]:
        """Which model a name stands for, looked at once a run."""
        if name not in self.models:
            if not self.fetch and files_of(name) is None:
                self.absent.add(name)
                return {"not here": name}
            self.models[name] = identity_of(name)
        return self.models[name]

    def _is_done(self, cell: Cell) -> bool:
        """Whether there is nothing to do; takes no lock."""
        for made, _, found in self.states(cell, thorough=True):
            if found is None:
                return False
            work = Work(cell, self.spec, None, self.store.folder(made.name, found.key))
            if made.is_large(work, found, self.spec.keep):
                return False
        return self.store.failed(cell) is None

    def _carried_out(self, cell: Cell) -> bool:
        worked = False
        for _ in range(3):  # a result that was dropped is made again, and what it was needed for is looked at again
            before: dict[str, Manifest] = {}
            try:
                for made, options in steps_of(self.spec, cell):
                    before[made.name], did = self._step(made, cell, options, before)
                    worked |= did
                break
            except _Gone:
                continue
        else:
            raise KrsError("a result that was dropped comes out differently each time: keep weights")
        for made, options in steps_of(self.spec, cell):
            manifest = before[made.name]
            folder = self.store.folder(made.name, manifest.key)
            work = Work(cell, self.spec, options, folder, self._folders(made, cell, before))
            made.shrink(work, manifest, self.spec.keep)
        return worked

    def _step(self, made: Step, cell: Cell, options: Any, before: dict[str, Manifest]) -> tuple[Manifest, bool]:
        """A step's manifest, and whether it had to be done for that."""
        inputs = everything_that_counts(made, cell, self.spec, options, before, self.identity)
        key = key_of(inputs)
        if found := self.store.find(made.name, key):
            return found, False
        if key in self.failures:
            raise _StepFailed(made.name) from self.failures[key]
        with self.store.lock(f"{made.name}-{key}"):
            if found := self.store.find(made.name, key):  # another process has made it meanwhile
                return found, False
            folder = self.store.folder(made.name, key)
            if (folder / NAME).exists():  # an artefact is damaged, or the manifest itself
                self.store.clear(made.name, key)
            upstream = {n: self._provided(n, cell, before) for n in needs_of(made, cell) if n in before}
            work = Work(cell, self.spec, options, folder, upstream)
            try:
                return self._run(made, work, key, inputs), True
            except Exception as reason:
                self.failures[key] = reason
                raise _StepFailed(made.name) from reason

    def _provided(self, name: str, cell: Cell, before: dict[str, Manifest]) -> Path:
        """The folder of a finished step, with everything in it that another step reads."""
        manifest = before[name]
        folder = self.store.folder(name, manifest.key)
        made = step(name)
        whole = made.provide(Work(cell, self.spec, None, folder, self._folders(made, cell, before)), manifest)
        if whole is None:
            self.store.clear(name, manifest.key)
            raise _Gone
        before[name] = whole
        return folder

    def _folders(self, made: Step, cell: Cell, before: dict[str, Manifest]) -> dict[str, Path]:
        """Where the steps are that one reads, as they lie there."""
        return {n: self.store.folder(n, before[n].key) for n in needs_of(made, cell) if n in before}

    def _run(self, made: Step, work: Work, key: str, inputs: dict[str, Any]) -> Manifest:
        """Run a step into its folder, from what an interrupted call has left there if that can be used."""
        clear_unfinished(work.folder, deep=True)
        left = work.folder.is_dir() and any(p.name != LOG for p in work.folder.iterdir())
        work.folder.mkdir(parents=True, exist_ok=True)
        begun = time.monotonic()
        with self._aloud(work.cell), logged(work.folder / LOG, made.name) as warned:
            try:
                content = made.run(work)
            except KrsError as reason:
                if not left or _of_the_disk(reason):
                    raise
                self.store.clear(made.name, key)
                work.folder.mkdir(parents=True, exist_ok=True)
                content = made.run(work)
        seconds = time.monotonic() - begun
        told: dict[str, Any] = {
            "cell": work.cell.where,
            "seconds": round(seconds, 3),
            "made": now(),
            "warnings": warned,
        }
        manifest = Manifest(made.name, key, inputs, content, artefacts(work.folder), **told)
        manifest.write(work.folder)
        return manifest

    def _aloud(self, cell: Cell) -> AbstractContextManager[None]:
        """Say on the stderr that is there now what goes on in the block, if somebody wants to know."""
        to = sys.stderr
        return heard(lambda line: _write(f"{cell.name}: {line}\n", to)) if self.aloud else nullcontext()

    def _noted(self, cell: Cell, reason: Exception, seconds: float) -> Outcome:
        name = reason.name if isinstance(reason, _StepFailed) else ""
        cause = reason.__cause__ if isinstance(reason, _StepFailed) else reason
        error = f"{type(cause).__name__}: {cause}"
        trace = "".join(traceback.format_exception(cause))
        told = {"cell": cell.where, "step": name, "error": error, "traceback": trace, "time": now()}
        try:
            self.store.fail(cell, told)
        except KrsError as unwritten:  # a full disk
            error = f"{error} (and this could not be noted: {unwritten})"
        return Outcome(cell.name, "failed", name, error, seconds)


def steps_of(spec: Spec, cell: Cell) -> Iterator[tuple[Step, Any]]:
    """The steps that a cell has, in their order, with their options."""
    if cell.teach is not None:
        yield step(TAUGHT), cell.teach
        if any(step(name).reads_retain for name in spec.steps):
            yield step(TWIN), cell.teach
    for name, given in spec.steps.items():
        made = step(name)
        if made.applies(cell):
            yield made, options_of(made.options, given, ())[0]


def most_memory(spec: Spec, cell: Cell, names: Collection[str]) -> int | None:
    """The most bytes that one of these steps of a cell needs; `None` where that cannot be known."""
    sizes = [made.memory(cell, options) for made, options in steps_of(spec, cell) if made.name in names]
    return None if None in sizes else max((size for size in sizes if size is not None), default=0)


def _write(line: str, to: Any) -> None:
    to.write(line)
    to.flush()


@contextmanager
def logged(path: Path, what: str) -> Iterator[list[str]]:
    """What is printed goes to a log file, with warnings; yields the list of what krs warns of."""
    krs_warned: list[str] = []
    with path.open("a", encoding="utf-8", errors="backslashreplace", buffering=1) as log:
        log.write(f"{now()} {what} begins\n")
        with warnings.catch_warnings(record=True) as caught, redirect_stdout(log), redirect_stderr(log):
            warnings.simplefilter("default")
            try:
                yield krs_warned
            except BaseException as reason:
                log.write(f"{now()} {what} stopped: {type(reason).__name__}: {reason}\n")
                raise
            finally:
                for one in caught:
                    log.write(f"warning: {one.category.__name__}: {one.message}\n")
                krs_warned += [str(one.message) for one in caught if issubclass(one.category, KrsWarning)]
        log.write(f"{now()} {what} is done\n")


def _of_the_disk(reason: BaseException) -> bool:
    """Whether the cause is that something cannot be written or read: then what is there may still be of use."""
    seen: BaseException | None = reason
    while seen is not None:
        if isinstance(seen, OSError):
            return True
        seen = seen.__cause__ or seen.__context__
    return False
