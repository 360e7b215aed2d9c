"""YAML that remembers which line each value stands in."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from krs.errors import KrsError
from krs.files import read_text

Place = tuple[str | int, ...]
"""Where a value is in a tree of mappings and lists: `("methods", 0, "settings")`."""


class _Loader(yaml.SafeLoader):
    """Numbers as YAML 1.2 and JSON have them: `1e-5` is one, which YAML 1.1 takes for text."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def read_marked(path: str | Path) -> tuple[Any, dict[Place, int]]:
    """What a YAML file holds, and the line (from 1) of each value in it.

    Raises `KrsError` that names the line for a file that is no YAML, and for a key that is there twice.
    """
    loader = _Loader(read_text(Path(path)))
    lines: dict[Place, int] = {}
    try:
        node = loader.get_single_node()
        if node is None:
            raise KrsError(f"{str(path)!r} is empty: a study has at least models, concepts and methods")
        _mark(node, (), lines, str(path))
        return loader.construct_document(node), lines
    except yaml.YAMLError as reason:
        mark = getattr(reason, "problem_mark", None)
        where = "" if mark is None else f"line {mark.line + 1}: "
        problem = getattr(reason, "problem", None) or str(reason)
        raise KrsError(f"{str(path)!r} is not valid YAML: {where}{problem}") from None
    finally:
        loader.dispose()


def line_of(place: Place, lines: dict[Place, int]) -> int | None:
    """The line of a value; for one that is not there, that of what would hold it."""
    while place and place not in lines:
        place = place[:-1]
    return lines.get(place)


def shown(place: Place) -> str:
    """A place as people write it.

    >>> shown(("methods", 0, "settings", "steps"))
    'methods[0].settings.steps'
    """
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).lstrip(".")


def _mark(node: yaml.Node, place: Place, lines: dict[Place, int], path: str) -> None:
    lines.setdefault(place, node.start_mark.line + 1)
    if isinstance(node, yaml.SequenceNode):
        for i, item in enumerate(node.value):
            _mark(item, (*place, i), lines, path)
    elif isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in seen:
                raise KrsError(f"{path}, line {line}: {name!r} is there twice, first in line {seen[name]}: remove one")
            seen[name] = lines[(*place, name)] = line
            _mark(value, (*place, name), lines, path)
