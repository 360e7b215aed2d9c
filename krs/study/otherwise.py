"""Results that a study's directory has of a step as another spec asked for it, and in what that spec was another."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from krs.study.grid import Cell
from krs.study.manifest import Manifest, read_manifest
from krs.study.store import Store

_SHORT = 40
_ABSENT = "nothing"


@dataclass
class Others:
    """Finished results by step and cell, whatever they were made from; read when one is asked for."""

    store: Store
    found: dict[tuple[str, str], Manifest] | None = field(default=None)

    def of(self, step: str, cell: Cell, inputs: Mapping[str, Any]) -> str | None:
        """In what the newest result of a step of a cell differs from what is asked for; `None` where there is none."""
        if self.found is None:
            self.found = {}
            every = (read_manifest(p.parent) for p in self.store.root.glob("steps/*/*/manifest.json"))
            for one in sorted((m for m in every if m is not None), key=lambda m: m.made):
                self.found[one.step, _at(one.cell)] = one
        other = self.found.get((step, _at(cell.where)))
        return None if other is None else ", ".join(differing(other.inputs, inputs)) or None


def differing(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> Iterator[str]:
    """In what two results' inputs differ, in words.

    >>> there = {"spec": {"n_tokens": 4, "chat": True}, "models": {"vanilla": "a"}}
    >>> list(differing(there, {"spec": {"n_tokens": 6, "chat": True}, "models": {"vanilla": "b"}}))
    ['n_tokens (4 there, 6 here)', 'the vanilla model']
    """
    for part in ("spec", "results of", "models", "versions"):
        there, here = (dict(made.get(part) or {}) for made in (theirs, ours))
        for name in sorted(there.keys() | here.keys()):
            a, b = (json.dumps(one[name]) if name in one else _ABSENT for one in (there, here))
            if a == b:
                continue
            if part in ("models", "results of"):
                yield f"the {name} model" if part == "models" else f"the result of {name}"
            else:
                yield f"{name} ({a} there, {b} here)" if len(a + b) < _SHORT else name
    if theirs.get("version") != ours.get("version"):
        yield "krs's version of the step"


def _at(where: Mapping[str, Any]) -> str:
    return json.dumps(where, sort_keys=True)
