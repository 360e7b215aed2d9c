"""What a study came to, read one cell at a time: tables alone, never the arrays of a sweep."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from krs._typing import DataFrame
from krs.study.carry import Carrier
from krs.study.grid import Cell, cells, n_cells
from krs.study.manifest import Manifest
from krs.study.pool import Pool
from krs.study.spec import Spec
from krs.study.store import Store

Key = tuple[str, ...]
AXES = ("model", "concept", "method", "strength")
_TEXTS = 900_000
"""Characters of answers that are kept, of all cells together."""
_SOME = 50


@dataclass
class Group:
    """What cells of one place in the grid came to.

    Attributes:
        cells: how many have at least one result.
        curves: KRS, `[setting, window]`.
        numbers: single numbers by name.
        verdicts: of dissections, counted.
    """

    cells: int = 0
    curves: Pool = field(default_factory=Pool)
    numbers: dict[str, Pool] = field(default_factory=dict)
    verdicts: Counter[str] = field(default_factory=Counter)

    def note(self, name: str, value: float) -> None:
        """One more number."""
        self.numbers.setdefault(name, Pool()).add(np.array([value], dtype=float))

    def join(self, other: Group) -> None:
        """Everything that is in another."""
        self.cells += other.cells
        if other.curves.n.size:
            self.curves.join(other.curves)
        for name, pool in other.numbers.items():
            self.numbers.setdefault(name, Pool()).join(pool)
        self.verdicts.update(other.verdicts)


@dataclass
class Collected:
    """A study as a report needs it.

    Attributes:
        states: how many cells are done, begun, failed and to do.
        groups: by model, concept, method and strength; seeds are pooled.
        plans: by model, the settings and the windows of its sweeps.
        bleu: by model, method and strength: `[target, unrelated, and the ceiling of each]`, a cell at a time.
        drift: by model and method: relative change, component by layer.
        places: by model, the components and layers of its drift.
        answers: rows of answers, as many as a page takes.
        n_answers: how many there are.
        failed: cells with their error, the first of them.
        warnings: of krs, counted.
        made: when the first and the last result was made.
        seconds: that all results took.
        versions: of what made them.
    """

    states: Counter[str] = field(default_factory=Counter)
    groups: dict[Key, Group] = field(default_factory=dict)
    plans: dict[str, tuple[list[str], list[Any]]] = field(default_factory=dict)
    bleu: dict[Key, Pool] = field(default_factory=dict)
    drift: dict[Key, Pool] = field(default_factory=dict)
    places: dict[str, tuple[list[str], list[int]]] = field(default_factory=dict)
    answers: list[dict[str, Any]] = field(default_factory=list)
    n_answers: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)
    warnings: Counter[str] = field(default_factory=Counter)
    made: tuple[str, str] = ("", "")
    seconds: float = 0.0
    versions: list[str] = field(default_factory=list)

    def pooled(self, axes: tuple[str, ...]) -> dict[Key, Group]:
        """The groups, with those that differ elsewhere than in `axes` put together."""
        at = [AXES.index(axis) for axis in axes]
        found: dict[Key, Group] = {}
        for key, group in self.groups.items():
            found.setdefault(tuple(key[i] for i in at), Group()).join(group)
        return found


def collect(spec: Spec, store: Store) -> Collected:
    """Read the tables of every cell that has some, one cell after the other."""
    found, seen = Collected(), set[str]()
    carrier, room = Carrier(spec, store), _Room(max(1, n_cells(spec) // len(spec.seeds)))
    for cell in cells(spec):
        there: dict[str, Path] = {}
        wanted = 0
        for made, _, manifest in carrier.states(cell):
            wanted += 1
            if manifest is not None:
                there[made.name] = store.folder(made.name, manifest.key)
                if manifest.key not in seen:
                    seen.add(manifest.key)
                    _note(found, manifest)
        state = "done" if len(there) == wanted else "begun" if there else "to do"
        failure = None if state == "done" else store.failed(cell)
        if failure is not None:
            state = "failed"
            if len(found.failed) < _SOME:
                found.failed.append((cell.name, f"{failure.get('step', '')}: {failure.get('error', '')}"))
        found.states[state] += 1
        _read(found, cell, there, room if cell.seed in (None, spec.seeds[0]) else None)
    return found


class _Room:
    """How much of each cell's answers is kept, so that all of them together are not too much for one page."""

    def __init__(self, n: int) -> None:
        self.each = max(600, _TEXTS // n)
        self.left = _TEXTS

    def rows(self, frame: DataFrame) -> Iterator[dict[str, Any]]:
        spent = 0
        for row in frame.to_dict("records"):
            size = sum(len(str(v)) for v in row.values()) + 200
            if (spent and spent + size > self.each) or size > self.left:
                return
            spent += size
            self.left -= size
            yield {str(k): v for k, v in row.items()}


def _note(found: Collected, manifest: Manifest) -> None:
    """What is known of one result, whichever cells share it."""
    first, last = found.made
    found.made = (min(first or manifest.made, manifest.made), max(last, manifest.made))
    found.seconds += manifest.seconds
    found.warnings.update(manifest.warnings)
    told = manifest.inputs.get("versions", {})
    line = ", ".join(f"{name} {v}" for name, v in told.items())
    if line not in found.versions:
        found.versions.append(line)


def _read(found: Collected, cell: Cell, there: dict[str, Path], room: _Room | None) -> None:
    group = found.groups.setdefault((cell.model, cell.concept, cell.method, cell.strength), Group())
    group.cells += bool(there)
    if "sweep" in there:
        _curves(found, cell, group, _table(there["sweep"] / "krs.csv"))
    if "drift" in there:
        _drift(found, cell, group, there["drift"])
    if "dissect" in there:
        evidence = _table(there["dissect"] / "evidence.csv")
        for name, value in zip(evidence.get("instrument", ()), evidence.get("mean", ()), strict=True):
            group.note(f"reading {name}", value)
        if len(evidence):
            group.verdicts[str(evidence.verdict.iloc[0])] += 1
    if "answers" in there:
        answers = _table(there["answers"] / "answers.csv")
        _bleu(found, cell, group, answers)
        found.n_answers += len(answers)
        if room is not None:
            restored = _table(there["restored"] / "restored.csv") if "restored" in there else None
            where = {axis: str(cell.where[axis]) for axis in AXES}
            found.answers += [where | row for row in room.rows(_said(answers, restored))]


def _table(path: Path) -> DataFrame:
    import pandas as pd

    texts = dict.fromkeys(_WORDS, str)
    return pd.read_csv(path, dtype=texts, keep_default_na=False, na_values={c: [""] for c in _NUMBERS})


_WORDS = ("side", "question", "vanilla", "unlearned", "restored", "setting", "component", "instrument", "verdict")
"""Columns of texts, whatever they look like."""

_NUMBERS = ("krs", "mean", "low", "high", "bleu", "ceiling", "relative_change", "first_layer", "last_layer")
"""Columns in which nothing means no number; a text may be "NA", or nothing."""


def _curves(found: Collected, cell: Cell, group: Group, table: DataFrame) -> None:
    settings, windows = (list(dict.fromkeys(table[name])) for name in ("setting", "window"))
    settings, windows = found.plans.setdefault(cell.model, (settings, windows))
    values = np.full((len(settings), len(windows)), np.nan)
    for setting, window, krs in zip(table.setting, table.window, table.krs.astype(float), strict=True):
        values[settings.index(setting), windows.index(window)] = krs
    group.curves.add(values)


def _drift(found: Collected, cell: Cell, group: Group, folder: Path) -> None:
    table = _table(folder / "drift.csv")
    components = list(dict.fromkeys(map(str, table.component)))
    layers = sorted(set(table.layer.astype(int)))
    components, layers = found.places.setdefault(cell.model, (components, layers))
    values = np.full((len(components), len(layers)), np.nan)
    for component, layer, change in zip(table.component, table.layer, table.relative_change.astype(float), strict=True):
        values[components.index(str(component)), layers.index(int(layer))] = change
    found.drift.setdefault((cell.model, cell.method), Pool()).add(values)
    for component, change in _table(folder / "components.csv")[["component", "relative_change"]].itertuples(
        index=False
    ):
        group.note(f"drift {component}", float(change))


def _bleu(found: Collected, cell: Cell, group: Group, answers: DataFrame) -> None:
    means = answers.groupby("side", sort=False)[["bleu", "ceiling"]].mean()
    row = [float(means[what].get(side, np.nan)) for what in ("bleu", "ceiling") for side in ("target", "unrelated")]
    found.bleu.setdefault((cell.model, cell.method, cell.strength), Pool()).add(np.array(row))
    for side, value in zip(("target", "unrelated"), row, strict=False):
        group.note(f"BLEU {side}", value)


def _said(answers: DataFrame, restored: DataFrame | None) -> DataFrame:
    """Before, after and restored; the restored ones are of the target's questions, in their order."""
    said = answers[["side", "question", "vanilla", "unlearned"]].copy()
    if restored is not None and len(restored):
        target = said.index[said.side == "target"][: len(restored)]
        said.loc[target, "restored"] = restored.restored.to_numpy(dtype=object)[: len(target)]
    return said.fillna("")
