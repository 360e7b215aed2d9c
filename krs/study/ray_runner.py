"""Cells as Ray tasks, on this machine or over a cluster. Needs the extra `krs[cluster]`."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from krs.cluster import Node, NoPlaceError, Room, cause_of, check_here, connected, here, stop
from krs.errors import KrsError, KrsWarning
from krs.extras import require
from krs.study.carry import Carrier, Outcome
from krs.study.grid import Cell
from krs.study.runner import RUNNERS
from krs.study.spec import Spec


@dataclass(frozen=True)
class Ray:
    """Cells are Ray tasks: `study.run(spec, out, runner=study.Ray(address="auto"))`.

    A cell asks for the memory that `krs study --dry-run` prints of it, for processors and for a GPU where there are
    any (`krs.cluster.Room`). A cell whose worker is lost is tried again, three times, and goes on from what is on the
    disk. The study's directory and the models have to be where every node sees them.

    Attributes:
        address: of a cluster; that of the environment (`RAY_ADDRESS`) if not given, and without one Ray is started on
            this machine for the while.
        cpus: threads a cell; see `krs.cluster.Room`.
        gpus: GPUs a cell, such as 0.25 for four cells on one.
        ahead: how many cells are handed to Ray at a time.
    """

    address: str | None = None
    cpus: int | None = None
    gpus: float | int | None = None
    ahead: int = 500
    room: Room = field(init=False)

    def __post_init__(self) -> None:
        require("ray", "cluster", "the runner 'ray'")
        object.__setattr__(self, "room", Room(self.cpus, self.gpus))

    def __call__(self, cells: Iterable[Cell], do: Carrier) -> Iterator[Outcome]:
        """Carry out all of them; raises `KrsError` for nodes that cannot: other versions, no directory, no room."""
        own = _modules(do.spec)
        with connected(self.address) as nodes, _mark(do.store.root) as mark:
            self.room.share(nodes)
            yield from _Cells(do, _Common(do, own, here(), mark), nodes, self).carried_out(cells)


RUNNERS["ray"] = Ray


@dataclass(frozen=True)
class _Common:
    """What every task gets: what carries out a cell, what to import before, and how to know the place."""

    do: Carrier
    modules: list[str]
    versions: dict[str, Any]
    mark: Path

    def begin(self) -> Carrier:
        """In a worker: raise `KrsError` where this is no place to work at."""
        check_here(self.versions)
        if not self.mark.exists():
            raise NoPlaceError(
                f"a worker does not see the study's directory ({str(self.do.store.root)!r}): it has to be on a file "
                "system that all nodes share"
            )
        for name in self.modules:
            importlib.import_module(name)
        return self.do


def _look(common: _Common, cell: Cell) -> tuple[bool, int | None] | Outcome:
    """Whether a cell has to be worked on, and the memory that takes: every file of it is looked at."""
    do = common.begin()
    try:
        return do.left(cell)
    except Exception as reason:  # noqa: BLE001 - the other cells go on
        return do.failed(cell, reason)


def _work(common: _Common, cell: Cell, wait: bool, cpus: int) -> Outcome:
    import torch

    torch.set_num_threads(cpus)
    return common.begin()(cell, wait)


class _Cells:
    """Cells under way: each is looked at, then worked on if there is something to do."""

    def __init__(self, do: Carrier, common: _Common, nodes: list[Node], asked: Ray) -> None:
        import ray

        self.ray, self.do, self.nodes, self.asked = ray, do, nodes, asked
        self.common = ray.put(common)
        self.tasks = {what: ray.remote(what) for what in (_look, _work)}
        self.running: dict[Any, tuple[Cell, int | None]] = {}
        """By reference of a task: its cell, and what that needs of memory."""
        self.later: list[tuple[Cell, int | None]] = []

    def carried_out(self, cells: Iterable[Cell]) -> Iterator[Outcome]:
        """Outcomes as they come; whatever interrupts, nothing runs on behind."""
        more = iter(cells)
        try:
            while True:
                for cell in islice(more, self.asked.ahead - len(self.running)):
                    self._begin(_look, cell, None, {"num_cpus": 1, "max_retries": 3})
                if not self.running:  # what other processes worked on comes last
                    waiting, self.later = self.later, []
                    for cell, memory in waiting:
                        self._work(cell, memory, wait=True)
                if not self.running:
                    return
                for ref in self.ray.wait(list(self.running))[0]:
                    yield from self._ended(ref)
        finally:
            stop(list(self.running))

    def _begin(self, what: Any, cell: Cell, memory: int | None, options: dict[str, Any], *args: Any) -> None:
        task = self.tasks[what].options(name=f"{what.__name__.strip('_')} {cell.name}", **options)
        self.running[task.remote(self.common, cell, *args)] = cell, memory

    def _work(self, cell: Cell, memory: int | None, wait: bool = False) -> None:
        share = self.asked.room.share(self.nodes, memory)
        if share.capped:
            warnings.warn(
                f"{cell.name} may take {(memory or 0) / 1e9:.1f} GB, and no node has more than "
                f"{share.memory / 1e9:.1f} GB: it gets a node to itself",
                KrsWarning,
                stacklevel=2,
            )
        self._begin(_work, cell, memory, share.options, wait, share.cpus)

    def _ended(self, ref: Any) -> Iterator[Outcome]:
        cell, memory = self.running.pop(ref)
        try:
            found = self.ray.get(ref)
        except self.ray.exceptions.RayError as reason:
            yield self.do.failed(cell, cause_of(reason))
            return
        if isinstance(found, tuple):
            todo, memory = found
            if todo:
                self._work(cell, memory)
            else:
                yield Outcome(cell.name, "kept")
        elif found.ended == "busy":
            self.later.append((cell, memory))
        else:  # a worker that was lost at the very end leaves a finished cell, which was done all the same
            yield replace(found, ended="done") if found.ended == "kept" else found


def _modules(spec: Spec) -> list[str]:
    """Modules of steps and methods that are not krs's own, for workers to import; raises `KrsError` for a script's."""
    from krs.registry import module_of
    from krs.study.step import step
    from krs.unlearn.methods import method

    used = {f"the step {name!r}": module_of(type(step(name))) for name in spec.steps}
    used |= {f"the method {m.name!r}": module_of(method(m.name)) for m in spec.methods}
    for what, module in used.items():
        if module == "__main__":
            raise KrsError(f"{what} stands in the script that is run, where no worker finds it: put it into a module")
    return sorted({module for module in used.values() if module.partition(".")[0] != "krs"})


@contextmanager
def _mark(root: Path) -> Iterator[Path]:
    """A file by which workers know that they see the same directory."""
    with NamedTemporaryFile(dir=root / "locks", prefix="ray-") as file:
        yield Path(file.name)
