"""Ctrl-C in a run: at once while nothing is lost by it, after a checkpoint or the finished model otherwise."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from tqdm import tqdm


class Interrupt:
    """Ctrl-C while there is work to lose: a step ends and a checkpoint is written, a model is saved to its end.

    Before training Ctrl-C acts at once, and so does a second one at any time.

    Attributes:
        saves: whether there is a place for a checkpoint; without one Ctrl-C always acts at once.
        waits: whether there is something to lose.
        asked: whether Ctrl-C came.
        stopped: whether training was stopped because of it.
        step: the last step that ended.
        unsaved: why no checkpoint could be written.
    """

    def __init__(self, saves: bool) -> None:
        self.saves = saves
        self.waits = False
        self.asked = False
        self.stopped = False
        self.step = 0
        self.unsaved: str | None = None

    def raise_if_stopped(self, model: Callable[[], nn.Module | None]) -> None:
        """Raise `KeyboardInterrupt` if training was stopped; where nothing could be written, `partial` is `model()`."""
        if not self.stopped:
            return
        if self.unsaved is None:
            raise _said(
                f"stopped after step {self.step}, a checkpoint was written; the same call goes on from there", None
            )
        raise _said(f"stopped after step {self.step}, and no checkpoint could be written: {self.unsaved}", model())

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Inside, the first Ctrl-C waits if there is something to lose; `KeyboardInterrupt` is raised afterwards."""
        before = signal.getsignal(signal.SIGINT)
        if not self.saves or threading.current_thread() is not threading.main_thread() or not callable(before):
            yield
            return

        def heard(number: int, frame: Any) -> None:
            signal.signal(signal.SIGINT, before)
            if not self.waits:
                before(number, frame)
            self.asked = True

        signal.signal(signal.SIGINT, heard)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)
        if self.asked:
            raise _said("Ctrl-C came when the model was unlearned: it has been saved first", None)


def _said(message: str, partial: Any) -> KeyboardInterrupt:
    tqdm.write(message, file=sys.stderr)
    interrupt: Any = KeyboardInterrupt(message)
    interrupt.partial = partial
    return interrupt
