"""Settings as plain data, so that a file needs no registry to be read."""

from __future__ import annotations

from typing import Any

from krs.hooks.points import PLACES, ActivationPoint, Chosen, Point, Setting, WeightPoint


def point_as_dict(point: Point) -> dict[str, Any]:
    """Everything that a point is.

    >>> from krs import HEAD_OUT
    >>> point_from_dict(point_as_dict(HEAD_OUT.heads(3))) == HEAD_OUT.heads(3)
    True
    """
    found: dict[str, Any] = {"kind": point.kind, "name": point.name, "role": point.role, "label": point.label}
    if point.chosen is not None:
        found["chosen"] = [point.chosen.what, list(point.chosen.numbers)]
    if point.place != "layer":
        found["place"] = point.place
    if isinstance(point, ActivationPoint):
        return found | {"side": point.side, "heads_of": point.heads_of}
    assert isinstance(point, WeightPoint)
    return found | {"whole": point.whole}


def point_from_dict(said: Any) -> Point:
    """The point again; raises `KeyError`, `TypeError` or `ValueError` for what is none."""
    chosen = said.get("chosen")
    common = (str(said["name"]), str(said["role"]), str(said["label"]))
    picked = None if chosen is None else Chosen(chosen[0], tuple(int(n) for n in chosen[1]))
    if (place := said.get("place", "layer")) not in PLACES:
        raise ValueError(f"place {place!r}")
    if said["kind"] == "weight":
        return WeightPoint(*common, chosen=picked, place=place, whole=bool(said["whole"]))
    if said["kind"] != "activation" or said["side"] not in ("input", "output"):
        raise ValueError(f"kind {said['kind']!r}, side {said.get('side')!r}")
    return ActivationPoint(*common, said["side"], chosen=picked, place=place, heads_of=said["heads_of"])


def setting_from(said: list[Any]) -> Setting:
    """A setting from its points."""
    return Setting(tuple(point_from_dict(p) for p in said))
