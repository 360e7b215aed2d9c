"""What a study came to, read one cell at a time: tables alone, never the arrays of a sweep."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from krs._typing import DataFrame
from krs.study.carry import Carrier
from krs.study.grid import Cell, cells, n_cells
from krs.study.manifest import Manifest
from krs.study.pool import Pool
from krs.study.spec import Spec
from krs.study.store import Store
from krs.study.tables import read_file, read_table

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
        places: by model and method, the components and layers of its drift.
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
    places: dict[Key, tuple[list[str], list[int]]] = field(default_factory=dict)
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


Files = Mapping[str, Callable[[str], str]]
"""By step, what reads a file of its result as text."""


@dataclass(frozen=True)
class Made:
    """One cell as it is found: in a study's directory, or in a file that was exported from it.

    Attributes:
        cell: its place in the grid.
        state: `"done"`, `"begun"`, `"failed"` or `"to do"`.
        error: step and error of one that failed.
        files: of the steps that are done.
        notes: of results that no cell before it has: when made, seconds, warnings, versions.
    """

    cell: Cell
    state: str
    error: str
    files: Files
    notes: tuple[Note, ...]


class Note(NamedTuple):
    """What is known of one result, whichever cells share it."""

    made: str
    seconds: float
    warnings: tuple[str, ...]
    versions: str


def made(spec: Spec, store: Store) -> Iterator[Made]:
    """Every cell of a study's directory, one after the other."""
    carrier, seen = Carrier(spec, store), set[str]()
    for cell in cells(spec):
        files: dict[str, Callable[[str], str]] = {}
        notes, wanted = [], 0
        for step, _, manifest in carrier.states(cell):
            wanted += 1
            if manifest is not None:
                files[step.name] = _reader(store.folder(step.name, manifest.key))
                if manifest.key not in seen:
                    seen.add(manifest.key)
                    notes.append(_note(manifest))
        state = "done" if len(files) == wanted else "begun" if files else "to do"
        failure = None if state == "done" else store.failed(cell)
        error = "" if failure is None else f"{failure.get('step', '')}: {failure.get('error', '')}"
        yield Made(cell, "failed" if failure is not None else state, error, files, tuple(notes))


def collect(spec: Spec, every: Iterable[Made]) -> Collected:
    """Read the tables of every cell that has some, one cell after the other."""
    found = Collected()
    room = _Room(max(1, n_cells(spec) // len(spec.seeds)))
    for one in every:
        for note in one.notes:
            _add(found, note)
        if one.error and len(found.failed) < _SOME:
            found.failed.append((one.cell.name, one.error))
        found.states[one.state] += 1
        _read(found, one.cell, one.files, room if one.cell.seed in (None, spec.seeds[0]) else None)
    return found


def _reader(folder: Path) -> Callable[[str], str]:
    return lambda name: read_file(folder / name)


def _note(manifest: Manifest) -> Note:
    told = manifest.inputs.get("versions", {})
    line = ", ".join(f"{name} {v}" for name, v in told.items())
    return Note(manifest.made, manifest.seconds, tuple(manifest.warnings), line)


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


def _add(found: Collected, note: Note) -> None:
    first, last = found.made
    found.made = (min(first or note.made, note.made), max(last, note.made))
    found.seconds += note.seconds
    found.warnings.update(note.warnings)
    if note.versions not in found.versions:
        found.versions.append(note.versions)


def _read(found: Collected, cell: Cell, files: Files, room: _Room | None) -> None:
    group = found.groups.setdefault((cell.model, cell.concept, cell.method, cell.strength), Group())
    group.cells += bool(files)
    if "sweep" in files:
        _curves(found, cell, group, read_table(files["sweep"]("krs.csv")))
    if "drift" in files:
        _drift(found, cell, group, files["drift"])
    if "dissect" in files:
        evidence = read_table(files["dissect"]("evidence.csv"))
        for name, value in zip(evidence.get("instrument", ()), evidence.get("mean", ()), strict=True):
            group.note(f"reading {name}", value)
        if len(evidence):
            group.verdicts[str(evidence.verdict.iloc[0])] += 1
    if "answers" in files:
        answers = read_table(files["answers"]("answers.csv"))
        _bleu(found, cell, group, answers)
        found.n_answers += len(answers)
        if room is not None:
            restored = read_table(files["restored"]("restored.csv")) if "restored" in files else None
            where = {axis: str(cell.where[axis]) for axis in AXES}
            found.answers += [where | row for row in room.rows(_said(answers, restored))]


def _curves(found: Collected, cell: Cell, group: Group, table: DataFrame) -> None:
    settings, windows = (list(dict.fromkeys(table[name])) for name in ("setting", "window"))
    settings, windows = found.plans.setdefault(cell.model, (settings, windows))
    values = np.full((len(settings), len(windows)), np.nan)
    for setting, window, krs in zip(table.setting, table.window, table.krs.astype(float), strict=True):
        values[settings.index(setting), windows.index(window)] = krs
    group.curves.add(values)


def _drift(found: Collected, cell: Cell, group: Group, read: Callable[[str], str]) -> None:
    table = read_table(read("drift.csv"))
    components = list(dict.fromkeys(map(str, table.component)))
    layers = sorted(set(table.layer.astype(int)))
    components, layers = found.places.setdefault((cell.model, cell.method), (components, layers))
    values = np.full((len(components), len(layers)), np.nan)
    for component, layer, change in zip(table.component, table.layer, table.relative_change.astype(float), strict=True):
        values[components.index(str(component)), layers.index(int(layer))] = change
    found.drift.setdefault((cell.model, cell.method), Pool()).add(values)
    for component, change in read_table(read("components.csv"))[["component", "relative_change"]].itertuples(
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
