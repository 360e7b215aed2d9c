"""The one exception that krs raises on purpose, and the one warning."""

from __future__ import annotations

from typing import Any


class KrsError(ValueError):
    """Bad input or a model that krs cannot handle.

    The message names the cause first and the remedy after it. Nothing that is raised as a
    `KrsError` leaves a model changed.

    Attributes:
        partial: what was made before the error and would be lost with it; `None` where there is nothing.
    """

    partial: Any = None


class KrsWarning(UserWarning):
    """Something that krs can go on with, and that is most likely not what was meant.

    `warnings.simplefilter("error", krs.KrsWarning)` makes it an error, `"ignore"` silences it.
    """
