"""One way to show progress, and one switch to turn it off."""

from __future__ import annotations

from typing import Any


def bar(total: int, doing: str, *, show: bool, unit: str = "it") -> Any:
    """A tqdm bar that says what it is doing; use it as a context manager and call `.update()`.

    Args:
        total: how many steps there will be.
        doing: what the steps are, in a few words; shown at the left.
        show: `False` draws nothing.
    """
    from tqdm.auto import tqdm

    return tqdm(total=total, desc=doing, disable=not show, unit=unit, dynamic_ncols=True, leave=True)
