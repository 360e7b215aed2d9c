"""Keeping freed memory for the next operation, on CPUs under glibc.

A pass allocates and frees tensors of some megabytes thousands of times. By default glibc returns such memory to the
system and takes it again, and the system clears each page anew: up to a fifth of a pass's time.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_TRIM, _MMAP = -1, -3  # names of malloc.h: M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
_KEEP = 2**30
_USUAL = 32 * 2**20
"""As high as glibc's own adaptation goes by itself; its state before cannot be asked for."""
_BY_USER = {
    _MMAP: ("MALLOC_MMAP_THRESHOLD_", "glibc.malloc.mmap_threshold"),
    _TRIM: ("MALLOC_TRIM_THRESHOLD_", "glibc.malloc.trim_threshold"),
}
"""Environment variables, and entries of GLIBC_TUNABLES, with which a user sets these before the process starts."""


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Inside, freed memory stays with the process; afterwards it goes back to the system. A no-op without glibc.

    Afterwards the settings are those of the user's environment if that has any, else what glibc's adaptation ends at;
    the adaptation itself stays off in this process, for nothing switches it on again.
    """
    libc = _glibc()
    if libc is None:
        yield
        return
    libc.mallopt(_MMAP, _KEEP)
    libc.mallopt(_TRIM, 4 * _USUAL)
    try:
        yield
    finally:
        libc.mallopt(_MMAP, _set_by_user(_MMAP) or _USUAL)
        libc.mallopt(_TRIM, _set_by_user(_TRIM) or 2 * _USUAL)
        libc.malloc_trim(0)


def _set_by_user(option: int) -> int | None:
    """What a user's environment says of an option, in bytes."""
    variable, tunable = _BY_USER[option]
    found = re.search(rf"(?:^|:){re.escape(tunable)}=([^:]+)", os.environ.get("GLIBC_TUNABLES", ""))
    said = found[1] if found else os.environ.get(variable, "")
    try:
        return int(said, 0)
    except ValueError:
        return None


def _glibc() -> Any:
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:
        return None
    return libc if hasattr(libc, "gnu_get_libc_version") and hasattr(libc, "mallopt") else None
