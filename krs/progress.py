"""One way to show progress, and one switch to turn it off."""

from __future__ import annotations

import sys
from typing import Any

from krs.wording import counted


def bar(total: int | None, doing: str, *, show: bool, unit: str = "it", done: int = 0, scale: bool = False) -> Any:
    """A tqdm bar that says what it is doing; use it as a context manager and call `.update()`.

    Where nobody watches (the error output is neither a terminal nor a notebook's), one line says what has begun, and
    no bar fills the log.

    Args:
        total: how many steps there will be; `None` if nobody knows.
        doing: what the steps are, in a few words; shown at the left.
        show: `False` draws nothing.
        unit: of a step, in the singular.
        done: how many steps an earlier run has done; they do not count for the rate.
        scale: write thousands as k, millions as M.
    """
    from tqdm.auto import tqdm

    watched = sys.stderr.isatty() or _in_notebook(tqdm)
    if show and not watched:
        sys.stderr.write(f"{_line(total, doing, unit, done)}\n")
        sys.stderr.flush()
    return tqdm(
        total=total,
        desc=doing,
        disable=not (show and watched),
        unit=unit,
        initial=done,
        unit_scale=scale,
        dynamic_ncols=True,
        leave=True,
    )


def _in_notebook(tqdm: type) -> bool:
    return any(kind.__module__ == "tqdm.notebook" for kind in tqdm.__mro__)


def _line(total: int | None, doing: str, unit: str, done: int) -> str:
    """
    >>> _line(8, "unlearn (npo)", "step", 0), _line(None, "reading", "document", 0), _line(8, "sweep", "step", 3)
    ('unlearn (npo): 8 steps', 'reading', 'sweep: 8 steps, 3 of them done before')
    """
    how_many = "" if total is None else f": {counted(total, unit, unit if unit == 'B' else None)}"
    return f"{doing}{how_many}{f', {done:,} of them done before' if done else ''}"
