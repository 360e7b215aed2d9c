"""Whether other work keeps the machine busy, which makes threads wait for each other."""

from __future__ import annotations

import os
from collections.abc import Mapping


def note() -> str | None:
    """What a command says before its first bar; one that is to be quiet has no bar."""
    return _busy(os.environ, *_cores_and_load())


def _cores_and_load() -> tuple[int, float]:
    """How many cores this process may use, and how many were wanted in the last minute; 0 where nobody knows."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores, os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


def _busy(environment: Mapping[str, str], n_cores: int, load: float) -> str | None:
    """What to say where other work keeps all cores busy, and threads of ours would wait for each other.

    >>> _busy({}, 2, 2.1)
    'note: other work keeps the 2 cores busy (load 2.1): OMP_NUM_THREADS=1 before the command can make it much faster'
    >>> _busy({}, 2, 1.2), _busy({"OMP_NUM_THREADS": "1"}, 2, 2.1)
    (None, None)
    """
    if n_cores < 2 or load < n_cores or "OMP_NUM_THREADS" in environment:
        return None
    return (
        f"note: other work keeps the {n_cores} cores busy (load {load:.1f}): OMP_NUM_THREADS=1 before the command can "
        "make it much faster"
    )
