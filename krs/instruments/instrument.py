"""What an instrument is, and the registry of those that there are."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np

from krs.errors import KrsError
from krs.hooks.context import plain_numerics
from krs.instruments.case import Case
from krs.instruments.nulls import null_cases
from krs.instruments.reading import Reading
from krs.registry import Registry, module_of


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
        knows: whether a model that knows the facts reads `"high"` or `"low"`; `None` for what only describes.
        needs: of `"retain"`, `"unrelated"`, `"paraphrases"`, `"wrong"`: without them it does not apply. Without
            `"retain"` it never sees the retain model, so that a reading is the same whether one is given or not.
        nulls: names of nulls (`krs.instruments.nulls`) that it is read under as well.
        passes: what it costs, in forward passes of one model over the target; a training step counts three. Of nulls,
            each costs as much again.
        version: raise it when the instrument comes to other numbers.
        bounds: the readings of a model that knows nothing and of one that knows all, where they are fixed.
    """

    name: ClassVar[str] = ""
    unit: ClassVar[str] = ""
    knows: ClassVar[Literal["high", "low"] | None] = "high"
    needs: ClassVar[tuple[str, ...]] = ()
    nulls: ClassVar[tuple[str, ...]] = ("same",)
    passes: ClassVar[float] = 1.0
    version: ClassVar[int] = 1
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

    def follows_retain(self, nulls: bool) -> bool:
        """Whether its reading follows from the retain model."""
        return "retain" in self.needs or (nulls and "never_knew" in self.nulls)

    def read(self, case: Case, nulls: bool = True) -> Reading:
        """`measure`, and the same under each of its nulls that the case allows."""
        if (lack := self.lacks(case)) is not None:
            raise KrsError(f"the instrument {self.name!r} does not apply here: it {lack}")
        with plain_numerics():
            return self._read(case, nulls)

    def _read(self, case: Case, nulls: bool) -> Reading:
        start = time.perf_counter()
        found = self._measured(case)
        others = dict(found.nulls)
        notes = list(found.notes)
        for name, stand_in in null_cases(self.nulls, case) if nulls else ():
            if self.lacks(stand_in) is None:
                try:
                    other = self._measured(stand_in)
                except KrsError as reason:
                    raise KrsError(
                        f"under the null {name!r}, in which another model or other facts stand in: {reason}"
                    ) from None
                others[name] = other.values
                notes += [f"null {name}: {note}" for note in other.notes]
        return replace(found, nulls=others, notes=tuple(notes), seconds=time.perf_counter() - start)

    def _measured(self, case: Case) -> Reading:
        return self.measure(case if "retain" in self.needs else replace(case, retain=None))


def _take(name: str, found: Any) -> None:
    """What an entry point of the group `krs.instruments` names: a class, by its own name or the entry point's."""
    if not isinstance(found, type) or not issubclass(found, Instrument):
        raise KrsError(f"the entry point {name!r} (krs.instruments) names {found!r}, which is no Instrument")
    register(found.name or name)(found)


REGISTRY: Registry[type[Instrument]] = Registry("instrument", "krs.instruments", take=_take)
I = TypeVar("I", bound=type[Instrument])  # noqa: E741


def register(name: str) -> Callable[[I], I]:
    """Class decorator: make an instrument known by a name. Raises `KrsError` for a name that another one has."""

    def add(made: I) -> I:
        REGISTRY.add(name, made, module_of(made))
        made.name = name
        return made

    return add


def instruments() -> list[str]:
    """Names of all instruments, also of those that packages bring by the entry point `krs.instruments`.

    >>> "uds" in instruments()
    True
    """
    return REGISTRY.names()


def instrument(given: str | Instrument) -> Instrument:
    """An instrument by its name; raises `KrsError` for an unknown one."""
    if isinstance(given, Instrument):
        return given
    return REGISTRY[given]()
