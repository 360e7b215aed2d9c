"""A study's tables in one small file, without the concepts' texts: to keep beside a paper, or in a repository."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from krs._typing import DataFrame
from krs.data.concepts import load_concepts
from krs.errors import KrsError, KrsWarning
from krs.study.collected import Made, Note, made
from krs.study.figures import TABLES
from krs.study.grid import Cell, cells
from krs.study.manifest import digest_of
from krs.study.run import Study, load
from krs.study.spec import Spec
from krs.study.store import Store
from krs.study.tables import read_table, written
from krs.wording import counted
from krs.writing import check_writable, write_text

MARK = "krs_study"
_FILES = {
    "sweep": ("krs.csv",),
    "answers": ("answers.csv",),
    "drift": ("drift.csv", "components.csv"),
    "dissect": ("evidence.csv",),
    "restored": ("restored.csv",),
}
_LEFT_OUT = {"drift.csv": ["cosine", "identical", "parameters", "norm", "change"]}
"""Columns that no page shows."""
_DIGITS = 6
_NAMES = ("name", "retain_from", "paragraphs", "retain", "corpus", "vanilla", "unlearned")
"""Fields of a spec's parts that may be names of files."""


def export(study: Study | str | Path, output: str | Path, *, texts: bool = False, overwrite: bool = False) -> Path:
    """Write a study's tables to one JSON file: every curve, reading and answer, no weights.

    >>> import tempfile
    >>> from krs import study
    >>> pair = {"vanilla": "smollm2", "unlearned": "smollm2"}    # stands in for a published pair
    >>> steps = {"prepare": {"n_tokens": 2}, "drift": {}}
    >>> asked = {"concepts": ["paris"], "pairs": [pair], "chat": True, "steps": steps}
    >>> found = study.run(asked, tempfile.mkdtemp(), progress=False)
    >>> file = study.export(found, tempfile.mkdtemp() + "/results.json")
    >>> study.load_exported(file)
    study of 1 cell: 1 done (without the questions' texts)

    Args:
        study: or its directory.
        output: a name that ends in .json.
        texts: with the questions, too. Without, each has its number and a digest, by which `load_exported(texts=)` and
            `krs report --texts` find it again in the concepts' files. What models have answered is always there.
        overwrite: replace a file that is there.

    Numbers are rounded to six digits.

    Raises `KrsError` for a study without results, and where the file cannot be written.
    """
    found = study if isinstance(study, Study) else load(study)
    place = Path(output)
    if place.suffix.lower() != ".json":
        raise KrsError(f"{str(place)!r}: an exported study is JSON, give a name that ends in .json")
    if place.exists() and not overwrite:
        raise KrsError(f"{str(place)!r} is there already: give another name, or overwrite=True")
    check_writable(place, "the exported study")
    rows = [_written(one, texts) for one in made(found.spec, Store(found.folder))]
    if not any(row["files"] for row in rows):
        raise KrsError(f"the study in {str(found.folder)!r} has no results yet: run it first, with krs study")
    spec = found.spec.model_dump(exclude_defaults=True)
    for part in (p for axis in ("models", "concepts", "methods", "pairs") for p in spec.get(axis, ())):
        part |= {field: _places(part[field]) for field in _NAMES if part.get(field)}
    told = {MARK: 1, "name": found.folder.name, "texts": texts, "spec": spec, "cells": rows}
    write_text(place, json.dumps(told, ensure_ascii=False, indent=0))
    return place


def _places(given: Any) -> Any:
    """Files by their own names: where they were on the machine is nobody's business."""
    if isinstance(given, dict):
        return {label: _places(name) for label, name in given.items()}
    path, name = Path(given), given
    return path.name if path.is_absolute() else name


def _written(one: Made, texts: bool) -> dict[str, Any]:
    files = {
        step: {name: _text(one.files[step](name), name, texts) for name in names}
        for step, names in _FILES.items()
        if step in one.files
    }
    notes = [list(note) for note in one.notes]
    return {"cell": one.cell.name, "state": one.state, "error": one.error, "files": files, "notes": notes}


def _text(text: str, name: str, texts: bool) -> str:
    """A table as text, numbers rounded, questions as `NUMBER:DIGEST`."""
    import pandas as pd

    table = pd.read_csv(io.StringIO(text), keep_default_na=False, dtype=str)
    table = table.drop(columns=[c for c in _LEFT_OUT.get(name, ()) if c in table])
    for column in table.columns:
        if column == "question" and not texts:
            table[column] = [f"{i}:{digest_of(question)}" for i, question in enumerate(table[column])]
        elif column not in ("vanilla", "unlearned", "restored", "question"):
            table[column] = [_rounded(cell) for cell in table[column]]
    return written(table)


def _rounded(cell: str) -> str:
    try:
        return f"{float(cell):.{_DIGITS}g}" if "." in cell or "e" in cell else cell
    except ValueError:
        return cell


@dataclass(frozen=True, repr=False)
class Exported:
    """A study that was read from one file.

    Attributes:
        spec: what was asked for.
        name: of the directory that it was in.
        rows: its cells as they are in the file.
        texts: questions by their digest, as far as they are at hand.
        whole: whether the file has the questions itself.
    """

    spec: Spec
    name: str
    rows: list[dict[str, Any]]
    texts: dict[str, str] = field(default_factory=dict)
    whole: bool = False

    def made(self) -> Iterator[Made]:
        """Every cell, as `krs.study.collected.collect` takes them."""
        places = {cell.name: cell for cell in cells(self.spec)}
        for row in self.rows:
            notes = tuple(Note(at, seconds, tuple(warned), told) for at, seconds, warned, told in row["notes"])
            files = {step: self._reader(names) for step, names in row["files"].items()}
            yield Made(places[row["cell"]], row["state"], row["error"], files, notes)

    def table(self, name: str = "krs") -> DataFrame:
        """As `Study.table`: `"krs"`, `"answers"`, `"drift"` or `"dissect"`."""
        import pandas as pd

        step, file = TABLES.get(name, ("", ""))
        if file not in _FILES.get(step, ()):
            raise KrsError(f"an exported study has no table {name!r}: there are krs, answers, drift, dissect")
        parts = []
        for one in self.made():
            if step in one.files:
                part = read_table(one.files[step](file))
                for i, (axis, value) in enumerate(_where(one.cell).items()):
                    part.insert(i, axis, value)
                parts.append(part)
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()

    def _reader(self, files: dict[str, str]) -> Callable[[str], str]:
        def read(name: str) -> str:
            return files[name] if self.whole or not self.texts else _joined(files[name], self.texts)

        return read

    def __repr__(self) -> str:
        from collections import Counter

        states = ", ".join(f"{n:,} {state}" for state, n in sorted(Counter(r["state"] for r in self.rows).items()))
        kept = "" if self.whole or self.texts else " (without the questions' texts)"
        return f"study of {counted(len(self.rows), 'cell')}: {states}{kept}"


def _where(cell: Cell) -> dict[str, Any]:
    return {"cell": cell.name, **{axis: "" if value is None else value for axis, value in cell.where.items()}}


def _joined(text: str, texts: dict[str, str]) -> str:
    import pandas as pd

    table = pd.read_csv(io.StringIO(text), keep_default_na=False, dtype=str)
    if "question" in table:
        table["question"] = [texts.get(q.partition(":")[2], q) for q in table.question]
    return written(table)


def load_exported(file: str | Path, texts: Iterable[str | Path] = ()) -> Exported:
    """A study that `export` wrote.

    Args:
        file: it.
        texts: files of concepts, or names of bundled ones, whose questions are put back where they stood.

    Raises `KrsError` for a file that holds none; a `KrsWarning` is given where `texts` lack questions of it.
    """
    try:
        told = json.loads(Path(file).read_text(encoding="utf-8"))
        spec = Spec.model_validate(told["spec"])
        rows = [row | {"files": dict(row["files"])} for row in told["cells"]]
        found = Exported(spec, str(told["name"]), rows, _texts(texts), bool(told["texts"]))
        missing = {row["cell"] for row in rows} - {cell.name for cell in cells(spec)}
    except (OSError, ValueError, KeyError, TypeError) as reason:
        raise KrsError(f"{str(file)!r} holds no exported study ({reason}): krs study export DIR writes one") from None
    if missing:
        raise KrsError(f"{str(file)!r} has cells that its own spec has not, such as {sorted(missing)[0]!r}")
    if found.texts and not found.whole:
        _warn_of_missing(found)
    return found


def _warn_of_missing(found: Exported) -> None:
    asked = {
        question.partition(":")[2]
        for row in found.rows
        for names in row["files"].values()
        for text in names.values()
        for question in read_table(text).get("question", ())
    }
    if missing := asked - found.texts.keys():
        warnings.warn(
            f"texts= has {len(asked) - len(missing)} of {counted(len(asked), 'question')} of this study: the others "
            "stay numbers; give the files of concepts that it was made with",
            KrsWarning,
            stacklevel=3,
        )


def _texts(given: Iterable[str | Path]) -> dict[str, str]:
    known = (concept for one in given for concept in load_concepts(one))
    return {digest_of(q): q for concept in known for q in (*concept.questions, *concept.unrelated_questions)}
