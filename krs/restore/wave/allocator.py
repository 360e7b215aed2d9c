"""Keeping freed memory for the next operation, on CPUs under glibc.

A pass allocates and frees tensors of some megabytes thousands of times. By default glibc returns such memory to the
system and takes it again, and the system clears each page anew: up to a fifth of a pass's time.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_TRIM, _MMAP = -1, -3  # names of malloc.h: M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
_KEEP = 2**30
_USUAL = 32 * 2**20
"""As high as glibc's own adaptation goes by itself; its state before cannot be asked for."""


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Inside, freed memory stays with the process; afterwards it goes back to the system. A no-op without glibc."""
    libc = _glibc()
    if libc is None:
        yield
        return
    libc.mallopt(_MMAP, _KEEP)
    libc.mallopt(_TRIM, 4 * _USUAL)
    try:
        yield
    finally:
        libc.mallopt(_MMAP, _USUAL)
        libc.mallopt(_TRIM, 2 * _USUAL)
        libc.malloc_trim(0)


def _glibc() -> Any:
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:
        return None
    return libc if hasattr(libc, "gnu_get_libc_version") and hasattr(libc, "mallopt") else None
