"""Small things that messages are made of."""

from __future__ import annotations


def counted(n: int, noun: str, plural: str | None = None) -> str:
    """A number and what it counts, as English has it.

    >>> counted(1, "setting"), counted(1200, "step"), counted(0, "query", "queries")
    ('1 setting', '1,200 steps', '0 queries')
    """
    return f"{n:,} {noun if n == 1 else plural or noun + 's'}"
