"""What a step of a cell is, and the registry of those that there are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from krs.errors import KrsError
from krs.models.provenance import NUMBERS, versions, versions_that_count
from krs.registry import Registry, module_of
from krs.study.grid import Cell
from krs.study.manifest import Manifest, digest_of
from krs.study.spec import Fault, Keep, Part, Spec

TAUGHT, TWIN = "teach", "retain"
"""Names of the steps that make a taught model, and the one that was never taught the cell's concept."""


@dataclass(frozen=True)
class Work:
    """What a step is given to work on.

    Attributes:
        cell: of the grid.
        spec: of the whole study.
        options: of the step.
        folder: where its artefacts go. What an interrupted call has left there is still there.
        upstream: folders of the finished steps that it needs, by name.
    """

    cell: Cell
    spec: Spec
    options: Any
    folder: Path
    upstream: dict[str, Path] = field(default_factory=dict)

    @property
    def vanilla(self) -> str:
        """The name of the vanilla model: the one that was taught, where there is one."""
        return str(self.upstream[TAUGHT] / "model") if TAUGHT in self.upstream else self.cell.vanilla

    @property
    def retain(self) -> str | None:
        """The name of the model that was never taught the concept; `None` where nothing was taught."""
        return str(self.upstream[TWIN] / "model") if TWIN in self.upstream else None

    @property
    def unlearned(self) -> str:
        """The name of the unlearned model: a published one, or the one that this cell has made."""
        return self.cell.unlearned or str(self.upstream["unlearn"] / "model")


class Step(ABC):
    """One step of a cell. Register a subclass with `@register("name")`, or by an entry point of `krs.study`.

    Attributes:
        needs: steps whose results it reads, where they apply.
        options: its options in a spec; fields as pydantic declares them.
        version: raise it when the step comes to other results.
        reads_retain: whether it reads the retain model of a cell whose model is taught.
    """

    name: ClassVar[str] = ""
    needs: ClassVar[tuple[str, ...]] = ()
    options: ClassVar[type[Part]] = Part
    version: ClassVar[int] = 1
    reads_retain: ClassVar[bool] = False

    def applies(self, cell: Cell) -> bool:
        """Whether a cell has this step (nothing is unlearned for a published pair)."""
        return True

    def check(self, spec: Spec, options: Any) -> Iterator[Fault]:
        """What is wrong with its options, by their place within them, before any work."""
        yield from ()

    @abstractmethod
    def inputs(self, cell: Cell, spec: Spec, options: Any) -> dict[str, Any]:
        """Everything in the spec that its result follows from, as JSON holds it. Models are asked for by `models`."""

    def models(self, cell: Cell) -> dict[str, str]:
        """Names of the models that it reads, by side; every byte of them counts."""
        return {"vanilla": cell.vanilla} | ({"unlearned": cell.unlearned} if cell.unlearned else {})

    @abstractmethod
    def run(self, work: Work) -> str:
        """Do it; returns a digest of the result (see `Manifest.content`).

        It writes files in one step each (`krs.writing`), and goes on from what an interrupted call left.
        """

    def memory(self, cell: Cell, options: Any) -> int | None:
        """About how many bytes it needs, from checkpoint headers; `None` where that cannot be known."""
        return 0

    def provide(self, work: Work, manifest: Manifest) -> Manifest | None:
        """Bring back what `shrink` took away, for a step that reads it; `None` if this step has to run again."""
        return manifest

    def is_large(self, work: Work, manifest: Manifest, keep: Keep) -> bool:
        """Whether `shrink` has something to do."""
        return False

    def shrink(self, work: Work, manifest: Manifest, keep: Keep) -> Manifest:
        """Leave less on the disk once the cell is done."""
        return manifest


def _take(name: str, found: Any) -> None:
    """What an entry point of the group `krs.study` names: a class, by the entry point's name unless it has one."""
    if not isinstance(found, type) or not issubclass(found, Step):
        raise KrsError(f"the entry point {name!r} (krs.study) names {found!r}, which is no Step")
    register(found.name or name)(found)


REGISTRY: Registry[type[Step]] = Registry("step", "krs.study", take=_take)
S = TypeVar("S", bound=type[Step])


def register(name: str) -> Callable[[S], S]:
    """Class decorator: make a step known by a name. A notebook's cell may be run again, changed."""

    def add(step: S) -> S:
        REGISTRY.add(name, step, module_of(step))
        step.name = name
        return step

    return add


def steps() -> list[str]:
    """Names of all steps, also of those that installed packages bring by the entry point `krs.study`.

    >>> "dissect" in steps()
    True
    """
    return REGISTRY.names()


def step(name: str) -> Step:
    """A step by its name; raises `KrsError` for an unknown one."""
    return REGISTRY[name]()


def needs_of(made: Step, cell: Cell) -> tuple[str, ...]:
    """The steps that one reads in a cell: those that it names, and where the model is taught, that."""
    if cell.teach is None or made.name in (TAUGHT, TWIN):
        return made.needs
    return (*made.needs, TAUGHT, *([TWIN] if made.reads_retain else []))


def everything_that_counts(
    made: Step, cell: Cell, spec: Spec, options: Any, before: dict[str, Manifest], identity: Callable[[str], Any]
) -> dict[str, Any]:
    """What a step's result follows from; `before` has the finished steps of the cell."""
    return {
        "step": made.name,
        "version": made.version,
        "spec": made.inputs(cell, spec, options),
        "results of": {n: before[n].content for n in needs_of(made, cell) if n in before},
        "models": {side: identity(name) for side, name in made.models(cell).items()},
        "versions": _versions(),
    }


def key_of(inputs: dict[str, Any]) -> str:
    """The name of the folder for a result of these inputs."""
    return digest_of(inputs)


_FOUND: dict[str, Any] = {}


def _versions() -> dict[str, Any]:
    if not _FOUND:
        _FOUND.update(versions_that_count(versions()) | {"krs's way to its numbers": NUMBERS})
    return _FOUND
