"""Points by their names: what strings such as `"mlp_coef+attn_out"` mean."""

from __future__ import annotations

import re

from krs.errors import KrsError
from krs.hooks.library import BUILT_IN
from krs.hooks.points import ActivationPoint, Point, Setting

_REGISTRY: dict[str, Point] = {}


def register_point(point: Point) -> Point:
    """Make a point known by its name, so that strings such as `"mlp_coef+my_point"` can use it.

    >>> from krs.hooks import ActivationPoint
    >>> GATE = register_point(ActivationPoint("gate", role=".mlp.gate_proj", label="MLP gates", side="output"))
    >>> setting("gate+attn_out").name
    'gate+attn_out'

    Raises `KrsError` for a name that another point has, and for one that a setting's name could not be read back with.
    """
    if not re.fullmatch(r"[A-Za-z_]\w*", point.name):
        raise KrsError(f"a point cannot be called {point.name!r}: use letters, digits and underscores")
    known = _REGISTRY.setdefault(point.name, point)
    if known != point:
        raise KrsError(f"the point name {point.name!r} is taken by another point: choose another name")
    return point


for _point in BUILT_IN:
    register_point(_point)


def _with_heads() -> list[str]:
    return [p.name for p in _REGISTRY.values() if isinstance(p, ActivationPoint) and p.heads_of]


def setting(given: str | Point | Setting) -> Setting:
    """A setting from a point, a sum of points, or their names joined by `+`."""
    if isinstance(given, Setting):
        return given
    if isinstance(given, Point):
        return Setting((given,))
    if not isinstance(given, str):
        raise KrsError(f"a setting is a point, a sum of points or a string, not {type(given).__name__}")
    first, *rest = (_named(name.strip(), given) for name in given.split("+"))
    total = Setting((first,))
    for point in rest:
        total = total + point
    return total


def _named(name: str, given: str) -> Point:
    """A point by its name, as `mlp_coef`, `mlp_coef.units(7, 9)` or `head_out.heads(3)`."""
    found = re.fullmatch(r"(\w+)(?:\.(units|heads)\(([\d,\s]+)\))?", name)
    if found is None or found[1] not in _REGISTRY:
        raise KrsError(
            f"unknown point {name!r} in setting {given!r}: known are {', '.join(sorted(_REGISTRY))}; "
            "add your own with krs.hooks.register_point"
        )
    point = _REGISTRY[found[1]]
    if found[2] is None:
        return point
    if found[2] == "heads" and not isinstance(point, ActivationPoint):
        raise KrsError(f"{point.name} is not made of heads: use .units(…), or one of {', '.join(_with_heads())}")
    numbers = [int(n) for n in found[3].split(",") if n.strip()]
    return point.units(*numbers) if found[2] == "units" else point.heads(*numbers)  # type: ignore[attr-defined]
