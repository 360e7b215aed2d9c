"""What is known by a name, krs's own and everybody else's: points, families, measures, engines, methods, steps.

A package of somebody's brings its own by an entry point, of which this is one in a `pyproject.toml`:

    [project.entry-points."krs.measures"]
    entropy = "my_package.measures"

It names a module, which registers what it has when it is imported, or the thing itself
(`"my_package.measures:ENTROPY"`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType
from typing import Any, Generic, TypeVar

from krs.errors import KrsError

T = TypeVar("T")
_CHECKERS = ("beartype", "jaxtyping")
"""Libraries whose wrappers may stand between a function and its caller."""


class Registry(Generic[T]):
    """Things of one kind by their names.

    Entry points are looked at when a name is asked for that is not known, and for a list of all names.

    >>> tools = Registry[int]("tool", "krs.tools")
    >>> tools.add("hammer", 3, "my_module")
    3
    >>> tools["hamer"]
    Traceback (most recent call last):
        ...
    krs.errors.KrsError: unknown tool 'hamer': known are hammer. Did you mean 'hammer'?

    Args:
        noun: what one of them is called in messages.
        groups: of entry points, the first of which is the one to be used.
        take: called with an entry point's name and the thing itself, where it names one; registers it.
        taken: what to do about a name that is taken, as messages say it.
    """

    def __init__(
        self,
        noun: str,
        *groups: str,
        take: Callable[[str, Any], object] | None = None,
        taken: str = "choose another name",
    ) -> None:
        self.noun, self.groups, self.taken = noun, groups, taken
        self._take: Callable[[str, Any], object] = take or (lambda name, value: self.add(name, value, module_of(value)))
        self._known: dict[str, tuple[T, str]] = {}

    def add(self, name: str, value: T, module: str, *, replace: bool = False) -> T:
        """Make `value` known by a name, registered by a module; returns it.

        The module that has registered a name may do so again, as a notebook's cell does that is run twice; nobody
        takes a name of krs's own or of another module's unasked. Raises `KrsError` for a name that is taken.
        """
        if not replace and name in self._known:
            known, owner = self._known[name]
            if known is not value and known != value and (owner != module or _is_ours(owner)):
                raise KrsError(f"the {self.noun} {name!r} is registered already, by {owner}: {self.taken}")
        self._known[name] = value, module
        return value

    def find(self, name: str, where: str = "", remedy: str = "") -> T:
        """What is known by a name; raises `KrsError` that names those that there are.

        Args:
            name: asked for.
            where: it was asked for, as the message goes on after the name.
            remedy: how the message ends.
        """
        if name not in self:
            known = self.names()
            near = get_close_matches(name.casefold(), known, n=1) or get_close_matches(name, known, n=1)
            meant = f". Did you mean {near[0]!r}?" if near else ""
            raise KrsError(f"unknown {self.noun} {name!r}{where}: known are {', '.join(known)}{remedy}{meant}")
        return self._known[name][0]

    def names(self) -> list[str]:
        """All names, sorted, with those that installed packages bring."""
        self._load(lambda entry: True)
        return sorted(self._known)

    def listed(self) -> list[str]:
        """All names in the order in which they came, those of entry points without importing what they name."""
        return list(dict.fromkeys([*self._known, *(entry.name for entry in self._entries())]))

    def values(self) -> list[T]:
        """Everything that is registered so far."""
        return [value for value, _ in self._known.values()]

    def copy(self) -> Registry[T]:
        """Another registry of the same things, to put in this one's place for a while."""
        other = Registry[T](self.noun, *self.groups, take=self._take, taken=self.taken)
        other._known = dict(self._known)
        return other

    def _entries(self) -> Iterator[EntryPoint]:
        for group in self.groups:
            yield from entry_points(group=group)

    def _load(self, wanted: Callable[[EntryPoint], bool]) -> None:
        for entry in filter(wanted, self._entries()):
            try:
                found = entry.load()
            except Exception as reason:
                said = str(reason).strip().partition("\n")[0] or type(reason).__name__
                whose = "" if entry.dist is None else f" of the package {entry.dist.name!r}"
                raise KrsError(
                    f"the entry point {entry.name!r} ({entry.group}){whose} could not be loaded ({said}): repair that "
                    "package, or uninstall it"
                ) from reason
            if not isinstance(found, ModuleType) and found not in self.values():
                self._take(entry.name, found)

    def __contains__(self, name: object) -> bool:
        """Whether a name is known; entry points are loaded for it, those of the same name first."""
        if name not in self._known:
            self._load(lambda entry: entry.name == name)
        if name not in self._known:
            self._load(lambda entry: True)
        return name in self._known

    def __getitem__(self, name: str) -> T:
        return self.find(name)

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._known))

    def __len__(self) -> int:
        return len(self._known)


def module_of(value: object) -> str:
    """The module that a class, a function or the class of an instance stands in."""
    return str(getattr(value, "__module__", None) or type(value).__module__)


def caller() -> str:
    """The module from which the function that asks was called: who registers a plain value."""
    ours = sys._getframe(1).f_globals["__name__"]
    frame = sys._getframe(1).f_back
    while frame is not None:
        name = str(frame.f_globals.get("__name__", ""))
        if name != ours and name.partition(".")[0] not in _CHECKERS:
            return name
        frame = frame.f_back
    return ours


def _is_ours(module: str) -> bool:
    return module.partition(".")[0] == "krs"
