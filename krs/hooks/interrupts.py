"""Ctrl-C waits while hooks and weights are being put in place or taken away."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def interrupt_deferred() -> Iterator[None]:
    """Hold back SIGINT until the block has ended, then let it do what it would have done.

    Between the statement that changes a weight and the one that remembers how to undo it, a `KeyboardInterrupt`
    would leave the model changed. Other threads than the main one never get one, so for them this does nothing.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    held: list[tuple[int, Any]] = []
    signal.signal(signal.SIGINT, lambda number, frame: held.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if held:
            before(*held[-1])
