"""How much memory a sweep may use for what it keeps: measured, or as the caller says."""

from __future__ import annotations

import re

import torch

from krs.errors import KrsError
from krs.models.memory import free_memory

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}
_SHARE = 0.25


def budget(given: int | float | str, device: torch.device) -> int:
    """Bytes: a number, a string such as `"4GiB"`, or a quarter of what is free for `"auto"`.

    Raises `KrsError` for anything else.
    """
    if isinstance(given, str) and given == "auto":
        return int(_SHARE * free_memory(device))
    if isinstance(given, str):
        found = re.fullmatch(r"\s*([0-9.]+)\s*(|[kmg]i?)b?\s*", given.lower())
        if found is None or found[1].count(".") > 1:
            raise KrsError(f"memory={given!r}: give bytes, a size such as '4GiB', or 'auto'")
        given = float(found[1]) * _UNITS[found[2]]
    if not given > 0:
        raise KrsError(f"memory={given!r}: give a positive number of bytes, a size such as '4GiB', or 'auto'")
    return int(given)
