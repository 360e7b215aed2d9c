"""Names of a package that are imported when they are first used, so that a mistyped command need not wait for torch."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def on_demand(package: str, places: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The functions `__getattr__` and `__dir__` of a package whose names are found in `places`.

    A place is a module (`"krs.hooks"`), or with a colon at its end the module that holds the name (`"krs.models:"`).
    """

    def getattribute(name: str) -> Any:
        if name not in places:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module, inside, _ = places[name].partition(":")
        found: Any = import_module(module)
        found = getattr(found, name) if inside else found
        setattr(sys.modules[package], name, found)
        return found

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *places})

    return getattribute, names
