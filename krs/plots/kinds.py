"""What figures are drawn of: results as far as they are asked for their tables."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from krs._typing import Axes, DataFrame


@runtime_checkable
class Drawn(Protocol):
    """What draws itself: the result of a sweep, a mean of some, a drift, answers."""

    def plot(self, *, ax: Any = None) -> Axes:
        """Draw on axes, or into a figure."""


@runtime_checkable
class HasFrame(Protocol):
    """What has a tidy table, such as a drift."""

    @property
    def frame(self) -> DataFrame:
        """Tidy."""


@runtime_checkable
class HasTable(Protocol):
    """What has a table of means, such as answers, and says how they were made."""

    @property
    def table(self) -> DataFrame:
        """A row a side, with `bleu` and `ceiling`."""

    @property
    def provenance(self) -> dict[str, Any]:
        """With the kind of `bleu`."""
