"""One way to show progress, and one switch to turn it off."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from tqdm.std import tqdm as plain_bar

from krs.errors import KrsWarning
from krs.wording import counted, span

_EVERY = 30.0
"""Seconds between two lines in a log file, at first; a tenth of what has passed later, so that no night fills it."""
_SELDOM = 600.0
"""And never more than these."""
_HEARD: ContextVar[Callable[[str], None] | None] = ContextVar("krs_progress_heard", default=None)
_OPEN: ContextVar[tuple[Lines, ...]] = ContextVar("krs_progress_open", default=())
_SAID: ContextVar[set[str] | None] = ContextVar("krs_progress_said", default=None)
_BEFORE: ContextVar[list[Callable[[], str | None]] | None] = ContextVar("krs_progress_before", default=None)

_LOADS: ContextVar[bool] = ContextVar("krs_progress_loads", default=False)


def bar(total: int | None, doing: str, *, show: bool, unit: str = "it", done: int = 0, scale: bool = False) -> Any:
    """A tqdm bar that says what it is doing; use it as a context manager and call `.update()`.

    Where nobody watches (the error output is neither a terminal nor a notebook's), a line says what has begun, and
    where that takes longer, a line now and then how far it is: no bar fills the log.

    Args:
        total: how many steps there will be; `None` if nobody knows.
        doing: what the steps are, in a few words; shown at the left.
        show: `False` draws nothing. Inside of another stage, its steps are signs of life of that one.
        unit: of a step, in the singular.
        done: how many steps an earlier run has done; they do not count for the rate.
        scale: write thousands as k, millions as M.
    """
    from tqdm.auto import tqdm

    if not show:
        return _Silent(total=total, disable=True)
    while before := _BEFORE.get():
        if (said := before.pop()()) is not None:
            told(said)
    if not (sys.stderr.isatty() or _in_notebook(tqdm)):
        return Lines(total, doing, unit, done, scale)
    return tqdm(
        total=total,
        desc=doing,
        unit=unit,
        initial=done,
        unit_scale=scale,
        dynamic_ncols=True,
        leave=True,
    )


@contextmanager
def before_the_first(note: Callable[[], str | None]) -> Iterator[None]:
    """What `note` returns is said once, before the first bar that is shown in the block: when long work begins."""
    before = _BEFORE.set([note])
    try:
        yield
    finally:
        _BEFORE.reset(before)


@contextmanager
def loads_told(show: bool) -> Iterator[None]:
    """Inside, what is loaded by name is said on stderr before that begins, for it may take a minute; not unless `show`.

    A call in Python loads what it was given and has nobody who wonders; a command has.
    """
    before = _LOADS.set(show)
    try:
        yield
    finally:
        _LOADS.reset(before)


def loading(names: Iterable[str | Path]) -> None:
    """Models of these names are about to be loaded: said where `loads_told` has it said."""
    if _LOADS.get() and (each := [*dict.fromkeys(map(str, names))]):
        told(f"loading {' and '.join(each)}")


@contextmanager
def heard(say: Callable[[str], None]) -> Iterator[None]:
    """Lines of long stages in the block go to `say` as well, where stderr itself goes into a file that nobody reads."""
    before = _HEARD.set(say)
    try:
        yield
    finally:
        _HEARD.reset(before)


def going_on(there: Mapping[str, tuple[int, int]], where: str | Path, *, show: bool, more: str = "") -> None:
    """Say on stderr how much of the work an earlier call has left, be it all; nothing where that is nothing.

    Args:
        there: of each thing that is counted (a noun in the singular), how many there are, and how many there will be.
        where: the file or folder that has them.
        show: `False` says nothing.
        more: what else there is to say, in brackets behind it.
    """
    if show and any(n for n, _ in there.values()):
        line = _gone_on(there, where, more)
        plain_bar.write(line, file=sys.stderr)
        if (say := _HEARD.get()) is not None:
            say(line)


def told(line: str) -> None:
    """Say something on stderr, above any bar that is there."""
    before = _SAID.get()
    if before is None or line not in before:
        plain_bar.write(line, file=sys.stderr)
    if before is not None:
        before.add(line)


@contextmanager
def warnings_as_lines() -> Iterator[None]:
    """Inside, warnings of ours are lines on stderr, without a place in the code, and no line is said twice."""
    usual = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        if issubclass(category, KrsWarning):
            told(f"note: {message}")
        else:
            usual(message, category, *place, **more)

    said = _SAID.set(set())
    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = usual
        _SAID.reset(said)


class Lines:
    """Stands in for a bar in a log file: the same calls, a line when it begins, and one now and then after that."""

    def __init__(self, total: int | None, doing: str, unit: str, done: int, scale: bool) -> None:
        self.total, self.n, self.initial = total, done, done
        self._doing, self._unit, self._scale = doing, unit, scale
        self._more = ""
        self._begun = self._last = time.monotonic()
        self._told: int | None = None
        self._outer: Any = None
        _write(_line(total, doing, unit, done))

    def __enter__(self) -> Lines:
        self._outer = _OPEN.set((*_OPEN.get(), self))
        return self

    def __exit__(self, *_: Any) -> None:
        _OPEN.reset(self._outer)
        self.close()

    def update(self, n: int = 1) -> None:
        """Steps are done."""
        self.n += n
        self.still()

    def still(self) -> None:
        """Something was done, be it no whole step: say so if it is time."""
        now = time.monotonic()
        if now - self._last >= min(max(_EVERY, (now - self._begun) / 10), _SELDOM):
            self._say(now)

    def set_postfix(self, terms: dict[str, str]) -> None:
        """As tqdm's."""
        self._more = ", ".join(f"{name} {value}" for name, value in terms.items())

    def set_postfix_str(self, text: str) -> None:
        """As tqdm's."""
        self._more = text

    def close(self) -> None:
        """Say where it ended, if it took long enough for a line on the way."""
        if self._told is not None and self._told != self.total:
            self._say(time.monotonic())

    def _say(self, now: float) -> None:
        self._last, self._told = now, self.n
        line = _how_far(self, now - self._begun)
        _write(line)
        if (say := _HEARD.get()) is not None:
            say(line)


class _Silent(plain_bar):
    """Draws nothing; the stage that it is a part of knows by it that something is done."""

    initial = 0

    def update(self, n: Any = 1) -> None:
        for stage in _OPEN.get()[-1:]:
            stage.still()


def _write(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def _in_notebook(tqdm: type) -> bool:
    return any(kind.__module__ == "tqdm.notebook" for kind in tqdm.__mro__)


def _line(total: int | None, doing: str, unit: str, done: int) -> str:
    """
    >>> _line(8, "unlearn (npo)", "step", 0), _line(None, "reading", "document", 0), _line(8, "sweep", "step", 3)
    ('unlearn (npo): 8 steps', 'reading', 'sweep: 8 steps, 3 of them done before')
    """
    how_many = "" if total is None else f": {counted(total, unit, unit if unit == 'B' else None)}"
    return f"{doing}{how_many}{f', {done:,} of them done before' if done else ''}"


def _gone_on(there: Mapping[str, tuple[int, int]], where: str | Path, more: str) -> str:
    """
    >>> _gone_on({"vanilla answer": (16, 16), "restoration": (40, 1200)}, "out/sweep.krs", "")
    "going on: all 16 vanilla answers and 40 of 1,200 restorations were in 'out/sweep.krs'"
    >>> _gone_on({"restoration": (1200, 1200)}, "out/sweep.krs", "")
    "done already: all 1,200 restorations are in 'out/sweep.krs'"
    """
    told = [
        f"{'all ' if n == of > 1 else '' if n == of else f'{n:,} of '}{counted(of, what)}"
        for what, (n, of) in there.items()
    ]
    began, are = ("done already", "are") if all(n == of for n, of in there.values()) else ("going on", "were")
    return f"{began}: {' and '.join(told)} {are} in {str(where)!r}{f' ({more})' if more else ''}"


def _how_far(stage: Lines, seconds: float) -> str:
    """How far a stage is after so many seconds, about how long it will take, and what it says of itself."""
    n, total, fresh = stage.n, stage.total, stage.n - stage.initial
    told = []
    if total is not None:
        told.append(f"{_amount(n, stage)} of {_amount(total, stage)}{'' if stage._unit == 'B' else f' {stage._unit}s'}")
    elif n:
        told.append(counted(n, stage._unit))
    told.append(f"after {span(seconds)}")
    if total is not None and fresh > 0 and n < total:
        told.append(f"about {span(seconds * (total - n) / fresh)} left")
    return f"{stage._doing}: {', '.join(told)}{f' ({stage._more})' if stage._more else ''}"


def _amount(n: int, stage: Lines) -> str:
    return f"{plain_bar.format_sizeof(n)}{stage._unit}" if stage._scale and stage._unit == "B" else f"{n:,}"
