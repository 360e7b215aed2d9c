"""Instruments: each asks in its own way whether a model knows, and is read where the answer is known as well.

>>> from krs.instruments import instruments
>>> {"nll", "recall", "uds", "relearn", "krs"} <= set(instruments())
True
"""

from __future__ import annotations

from krs.instruments.case import Case
from krs.instruments.facts import Fact, as_facts, read_facts
from krs.instruments.instrument import Instrument, instrument, instruments, register
from krs.instruments.reading import Reading

__all__ = ["Case", "Fact", "Instrument", "Reading", "as_facts", "instrument", "instruments", "read_facts", "register"]
