"""Are a method's settings of the types that its config declares?"""

from __future__ import annotations

import types
from dataclasses import fields
from difflib import get_close_matches
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from krs.errors import KrsError
from krs.unlearn.config import Config, EditConfig
from krs.wording import kind


def check_settings(name: str, config_class: type[Config] | type[EditConfig], settings: dict[str, Any]) -> None:
    """Raise `KrsError` for a setting that a method does not have, and for one of another type.

    >>> from krs.unlearn.config import Config
    >>> check_settings("npo", Config, {"steps": "three"})
    Traceback (most recent call last):
        ...
    krs.errors.KrsError: npo: steps='three' is a str: give an int
    """
    names = {field.name for field in fields(config_class)}
    hints = {n: h for n, h in get_type_hints(config_class).items() if n in names}
    for setting, value in settings.items():
        if setting not in hints:
            near = get_close_matches(setting, hints, n=1, cutoff=0.5)
            meant = f" Did you mean {near[0]!r}?" if near else ""
            raise KrsError(f"{name} has no setting {setting!r}: it has {', '.join(sorted(hints))}.{meant}")
        if not fits(value, hints[setting]):
            given = kind(value).partition(" (")[0]  # the value itself is named before
            raise KrsError(f"{name}: {setting}={value!r} is {given}: give {_named(hints[setting])}")


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a type, as configs use them: numbers, strings, choices, lists, and unions of these."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(fits(value, one) for one in inner)
    if origin is Literal:
        return isinstance(value, str)  # which one, the config asks
    if origin is not None:
        return isinstance(value, list | tuple | range) and all(fits(v, inner[0]) for v in value)
    if hint in (int, float):
        return isinstance(value, int | hint) and not isinstance(value, bool)
    return not isinstance(hint, type) or isinstance(value, hint)


def _named(hint: Any) -> str:
    """A type in words."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_named(one) for one in inner)
    if origin is Literal:
        return " or ".join(map(repr, inner))
    if origin is not None:
        return f"a list such as {'[3, 4]' if inner and inner[0] is int else '[…]'}"
    words = {int: "an int", float: "a number", bool: "true or false", str: "a text", type(None): "nothing"}
    return words.get(hint, str(hint))
