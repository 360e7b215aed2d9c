"""Instruments: each asks in its own way whether a model knows, and is read where the answer is known as well.

>>> from krs.instruments import instruments
>>> {"nll", "recall", "uds", "relearn", "krs"} <= set(instruments())
True
"""

from __future__ import annotations

from krs.instruments import (  # noqa: F401 - they register themselves
    account,
    behaviour,
    heldout,
    lens,
    probe,
    quantise,
    recovered,
    relearn,
    transplant,
    uds,
)
from krs.instruments.case import Case
from krs.instruments.dissect import dissect
from krs.instruments.dissection import Dissection, load_dissection
from krs.instruments.facts import Fact, as_facts, read_facts
from krs.instruments.instrument import Instrument, instrument, instruments, register
from krs.instruments.reading import Reading
from krs.instruments.watching import watch

__all__ = [
    "Case",
    "Dissection",
    "Fact",
    "Instrument",
    "Reading",
    "as_facts",
    "dissect",
    "instrument",
    "instruments",
    "load_dissection",
    "read_facts",
    "register",
    "watch",
]
