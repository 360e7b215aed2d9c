"""Whether a machine is as fast as one timed pass made believe: what ran, beside what it was estimated to take."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median
from typing import Any

from krs.wording import counted


@dataclass
class Pace:
    """Measured seconds over estimated ones, of each instrument that ran in this call.

    The median of them counts, so that neither one instrument whose estimate is far off nor one pause of the machine
    decides about all the others.

    >>> pace = Pace()
    >>> pace.judged(30.0)
    30.0
    >>> for measured in (21.0, 19.0, 500.0):
    ...     pace.note(10.0, measured)
    >>> pace.judged(30.0), str(pace)
    (63.0, 'what ran took 2.1 times its estimate (median of 3 instruments)')
    """

    ratios: list[float] = field(default_factory=list)

    def note(self, estimated: float, measured: float) -> None:
        """An instrument has run."""
        if estimated > 0:
            self.ratios.append(measured / estimated)

    @property
    def ratio(self) -> float:
        """By which estimates are multiplied; 1 before anything has run."""
        return median(self.ratios) if self.ratios else 1.0

    def judged(self, estimated: float) -> float:
        """The seconds that something is taken to take."""
        return estimated * self.ratio

    def told(self) -> dict[str, Any]:
        """As provenance has it."""
        return {"measured_to_estimated": round(self.ratio, 3), "instruments": len(self.ratios)}

    def __str__(self) -> str:
        return (
            f"what ran took {self.ratio:.2g} times its estimate (median of {counted(len(self.ratios), 'instrument')})"
        )
