"""What an instrument is, and the registry of those that there are."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np

from krs.errors import KrsError
from krs.hooks.context import plain_numerics
from krs.instruments.case import Case
from krs.instruments.nulls import null_cases
from krs.instruments.reading import Reading

ENTRY_POINTS = "krs.instruments"
_OURS = ("behaviour", "heldout", "probe", "quantise", "recovered", "relearn", "transplant", "uds")


class Instrument(ABC):
    """One way to ask whether a model knows. Register a subclass with `@register("name")`.

    >>> from krs.instruments import Instrument, Reading, register
    >>> @register("answer_length")
    ... class AnswerLength(Instrument):
    ...     '''Tokens of the right answer: says nothing about the model.'''
    ...     unit, knows = "tokens", "high"
    ...     def measure(self, case):
    ...         return self.reading([len(a) for a in case.target.answers])

    Attributes:
        unit: of its numbers.
        knows: whether a model that knows the facts reads `"high"` or `"low"`.
        needs: of `"retain"`, `"unrelated"`, `"paraphrases"`, `"wrong"`: without them it does not apply.
        nulls: names of nulls (`krs.instruments.nulls`) that it is read under as well.
        passes: what it costs, in forward passes of one model over the target; a training step counts three. Of nulls,
            each costs as much again.
        bounds: the readings of a model that knows nothing and of one that knows all, where they are fixed.
    """

    name: ClassVar[str] = ""
    unit: ClassVar[str] = ""
    knows: ClassVar[Literal["high", "low"]] = "high"
    needs: ClassVar[tuple[str, ...]] = ()
    nulls: ClassVar[tuple[str, ...]] = ("same",)
    passes: ClassVar[float] = 1.0
    bounds: ClassVar[tuple[float, float] | None] = None

    @abstractmethod
    def measure(self, case: Case) -> Reading:
        """A number for each target fact. The case's models may be copied, never changed."""

    def reading(self, values: Any, curves: dict[str, Any] | None = None, notes: tuple[str, ...] = ()) -> Reading:
        """A `Reading` of this instrument."""
        return Reading(
            self.name, np.asarray(values, dtype=np.float64), self.unit, self.knows, curves=curves or {}, notes=notes
        )

    def lacks(self, case: Case) -> str | None:
        """Why it does not apply to a case; `None` if it does."""
        facts = case.target.facts
        there = {
            "retain": case.retain is not None,
            "unrelated": case.unrelated is not None,
            "paraphrases": any(fact.paraphrases for fact in facts),
            "wrong": any(fact.wrong for fact in facts),
        }
        missing = [need for need in self.needs if not there[need]]
        return f"needs {' and '.join(missing)}" if missing else None

    def read(self, case: Case, nulls: bool = True) -> Reading:
        """`measure`, and the same under each of its nulls that the case allows."""
        if (lack := self.lacks(case)) is not None:
            raise KrsError(f"the instrument {self.name!r} does not apply here: it {lack}")
        with plain_numerics():
            return self._read(case, nulls)

    def _read(self, case: Case, nulls: bool) -> Reading:
        start = time.perf_counter()
        found = self.measure(case)
        others = dict(found.nulls)
        notes = list(found.notes)
        for name, stand_in in null_cases(self.nulls, case) if nulls else ():
            if self.lacks(stand_in) is None:
                other = self.measure(stand_in)
                others[name] = other.values
                notes += [f"null {name}: {note}" for note in other.notes]
        return replace(found, nulls=others, notes=tuple(notes), seconds=time.perf_counter() - start)


_REGISTRY: dict[str, type[Instrument]] = {}
I = TypeVar("I", bound=type[Instrument])  # noqa: E741


def register(name: str) -> Callable[[I], I]:
    """Class decorator: make an instrument known by a name. Raises `KrsError` for a name that another one has."""

    def add(made: I) -> I:
        known = _REGISTRY.get(name)
        if known is not None and (known.__module__, known.__qualname__) != (made.__module__, made.__qualname__):
            raise KrsError(f"the instrument {name!r} is registered already, by {known.__module__}")
        made.name = name
        _REGISTRY[name] = made
        return made

    return add


def instruments() -> list[str]:
    """Names of all instruments, also of those that packages bring by the entry point `krs.instruments`.

    >>> "uds" in instruments()
    True
    """
    for module in _OURS:
        import_module(f"krs.instruments.{module}")
    for point in entry_points(group=ENTRY_POINTS):
        point.load()
    return sorted(_REGISTRY)


def instrument(given: str | Instrument) -> Instrument:
    """An instrument by its name; raises `KrsError` for an unknown one."""
    if isinstance(given, Instrument):
        return given
    names = instruments()
    if given not in names:
        near = get_close_matches(given, names, n=1)
        meant = f". Did you mean {near[0]!r}?" if near else ""
        raise KrsError(f"there is no instrument {given!r}: there are {', '.join(names)}{meant}")
    return _REGISTRY[given]()
