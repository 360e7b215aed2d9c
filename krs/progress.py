"""One way to show progress, and one switch to turn it off."""

from __future__ import annotations

from typing import Any


def bar(total: int | None, doing: str, *, show: bool, unit: str = "it", done: int = 0, scale: bool = False) -> Any:
    """A tqdm bar that says what it is doing; use it as a context manager and call `.update()`.

    Args:
        total: how many steps there will be; `None` if nobody knows.
        doing: what the steps are, in a few words; shown at the left.
        show: `False` draws nothing.
        unit: of a step.
        done: how many steps an earlier run has done; they do not count for the rate.
        scale: write thousands as k, millions as M.
    """
    from tqdm.auto import tqdm

    return tqdm(
        total=total,
        desc=doing,
        disable=not show,
        unit=unit,
        initial=done,
        unit_scale=scale,
        dynamic_ncols=True,
        leave=True,
    )
