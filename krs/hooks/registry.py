"""Points by their names: what strings such as `"mlp_coef+attn_out"` mean."""

from __future__ import annotations

import re
from typing import Any

from krs.errors import KrsError
from krs.hooks.lens_names import is_hook_name, point_name
from krs.hooks.library import BUILT_IN
from krs.hooks.points import ActivationPoint, Each, Point, Setting
from krs.registry import Registry, caller


def _take(name: str, point: Any) -> None:
    """What an entry point of the group `krs.points` names; one that is no module is a point, whatever it is called."""
    if not isinstance(point, Point):
        raise KrsError(f"the entry point {name!r} (krs.points) names {type(point).__name__}, which is no point")
    REGISTRY.add(point.name, point, f"entry point {name}")


REGISTRY: Registry[Point] = Registry("point", "krs.points", take=_take)
for _point in BUILT_IN:
    REGISTRY.add(_point.name, _point, "krs.hooks.library")


def register_point(point: Point) -> Point:
    """Make a point known by its name, so that strings such as `"mlp_coef+my_point"` can use it.

    >>> from krs.hooks import ActivationPoint
    >>> GATE = register_point(ActivationPoint("gate", role=".mlp.gate_proj", label="MLP gates", side="output"))
    >>> setting("gate+attn_out").name
    'gate+attn_out'

    A notebook's cell that registers one may be run again, changed. Raises `KrsError` for a name that another point
    has, and for one that a setting's name could not be read back with.
    """
    if not re.fullmatch(r"[A-Za-z_]\w*", point.name):
        raise KrsError(f"a point cannot be called {point.name!r}: use letters, digits and underscores")
    return REGISTRY.add(point.name, point, caller())


def each(given: object) -> Each | None:
    """An axis from its text, such as `"head_out.each_head()"`; `None` for what is none.

    >>> each("mlp_coef.units(7, 9).each()")
    mlp_coef.units(7, 9).each()
    """
    if isinstance(given, Each):
        return given
    if not isinstance(given, str):
        return None
    name = given.strip()
    if name.endswith(".each()"):
        return _named(name.removesuffix(".each()"), given).each()
    if name.endswith(".each_head()"):
        return _with_heads(_named(name.removesuffix(".each_head()"), given)).each_head()
    return None


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
    """A point by its name, as `mlp_coef`, `mlp_coef.units(7, 9)` or `head_out.heads(3)`, or by TransformerLens'."""
    if is_hook_name(name):
        return REGISTRY.find(point_name(name))
    found = re.fullmatch(r"(\w+)(?:\.(units|heads)\(([\d,\s]+)\))?", name)
    remedy = "; add your own with krs.hooks.register_point"
    point = REGISTRY.find(name if found is None else found[1], f" in setting {given!r}", remedy)
    if found is None or found[2] is None:
        return point
    numbers = [int(n) for n in found[3].split(",") if n.strip()]
    return point.units(*numbers) if found[2] == "units" else _with_heads(point).heads(*numbers)


def _with_heads(point: Point) -> ActivationPoint:
    """The point, if it is made of heads."""
    if not isinstance(point, ActivationPoint) or point.heads_of is None:
        names = [p.name for p in REGISTRY.values() if isinstance(p, ActivationPoint) and p.heads_of]
        raise KrsError(f"{point.name} is not made of heads: use .units(…), or one of {', '.join(names)}")
    return point
