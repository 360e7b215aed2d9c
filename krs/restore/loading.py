"""Results from their files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from krs.restore import storage
from krs.restore.averaging import mean
from krs.restore.result import SweepResult


def load_result(path: str | Path) -> Any:
    """Read what `save` wrote: the `SweepResult`, or the `MeanResult` of `krs.mean`. Nothing in the file is executed.

    >>> load_result("nowhere.krs")
    Traceback (most recent call last):
    krs.errors.KrsError: no file 'nowhere.krs'

    Raises `KrsError` for a missing file and for one that is not a saved result, or not all of one.
    """
    fields, names = storage.read(path)
    found = [SweepResult(**one) for one in fields]
    return found[0] if names is None else mean(found, names)
