"""Who carries out the cells, one after the other or elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, runtime_checkable

from krs.errors import KrsError
from krs.study.carry import Carrier, Outcome
from krs.study.grid import Cell


@runtime_checkable
class Runner(Protocol):
    """Calls `do(cell, wait)` for each cell, and yields outcomes in any order.

    Cells come lazily, for there may be very many. `do` raises nothing but interrupts, may be pickled, and may run
    anywhere that sees the study's directory. Without `wait` it gives up a cell that another process works on (`busy`).
    """

    def __call__(self, cells: Iterable[Cell], do: Carrier) -> Iterator[Outcome]:
        """Carry out all of them."""


def local(cells: Iterable[Cell], do: Carrier) -> Iterator[Outcome]:
    """In this process, in order; what another process works on comes last, when that has ended."""
    later = []
    for cell in cells:
        outcome = do(cell, False)
        if outcome.ended == "busy":
            later.append(cell)
        else:
            yield outcome
    for cell in later:
        yield do(cell, True)


RUNNERS: dict[str, Callable[[], Runner]] = {"local": lambda: local}
"""By name, what makes a runner: it raises `KrsError` where that cannot run here."""


def runner(given: str | Runner) -> Runner:
    """A runner by name, or one of the caller's; raises `KrsError` for an unknown name, or one that cannot run here."""
    if not isinstance(given, str):
        return given
    if given not in RUNNERS:
        raise KrsError(f"there is no runner {given!r}: there is {', '.join(map(repr, RUNNERS))}, or pass one of yours")
    return RUNNERS[given]()
