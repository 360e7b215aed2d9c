"""Who carries out the cells, one after the other or elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, runtime_checkable

from krs.errors import KrsError
from krs.study.carry import Outcome
from krs.study.grid import Cell

Do = Callable[[Cell, bool], Outcome]
"""Carries out a cell: `do(cell, wait)`. It raises nothing but interrupts, may be pickled, and may run anywhere that
sees the study's directory."""


@runtime_checkable
class Runner(Protocol):
    """Calls `do` for each cell, and yields outcomes in any order; cells come lazily, for there may be very many."""

    def __call__(self, cells: Iterable[Cell], do: Do) -> Iterator[Outcome]:
        """Carry out all of them."""


def local(cells: Iterable[Cell], do: Do) -> Iterator[Outcome]:
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


RUNNERS: dict[str, Runner] = {"local": local}


def runner(given: str | Runner) -> Runner:
    """A runner by name, or one of the caller's; raises `KrsError` for an unknown name."""
    if not isinstance(given, str):
        return given
    if given not in RUNNERS:
        raise KrsError(f"there is no runner {given!r}: there is {', '.join(map(repr, RUNNERS))}, or pass one of yours")
    return RUNNERS[given]
