"""Saved results: what a file holds is found out without torch, then it is read."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from krs.errors import KrsError

Kind = Literal["sweep", "account", "answers", "dissection", "report", "drift", "vocabulary", "study"]
REPORT = "krs_unlearn.json"
NAMES = (REPORT, "sweep.krs", "account.krs", "answers.json", "vocabulary.json", "report.json", "drift.csv")
"""What commands call their results, in the order in which a directory is shown."""

_MARKS: dict[str, Kind] = {
    "krs_answers": "answers",
    "krs_dissection": "dissection",
    "krs_vocabulary": "vocabulary",
    "krs_study": "study",
}
_DRIFT = {"component", "layer", "cosine", "relative_change", "identical", "parameters", "norm"}


@dataclass(frozen=True)
class Saved:
    """A file with a result in it.

    Attributes:
        path: the file.
        kind: what it holds.
    """

    path: Path
    kind: Kind

    def read(self) -> Any:
        """The result; of a report the dict, of a drift a `krs.metrics.Drift`."""
        if self.kind == "report":
            return json.loads(self.path.read_text(encoding="utf-8"))
        if self.kind == "sweep":
            from krs.restore import load_result

            return load_result(self.path)
        if self.kind == "dissection":
            from krs.instruments import load_dissection

            return load_dissection(self.path)
        if self.kind == "study":
            from krs.study import load_exported

            return load_exported(self.path)
        if self.kind == "drift":
            import pandas as pd

            from krs.metrics.drift import Drift

            return Drift(pd.read_csv(self.path), tied=False)
        from krs.metrics import load_account, load_answers, load_vocabulary

        read = {"account": load_account, "answers": load_answers, "vocabulary": load_vocabulary}
        return read[self.kind](self.path)


def found(places: Sequence[Path]) -> list[Saved]:
    """The results in files and directories; `KrsError` for a place that holds none."""
    return [saved for place in places for saved in _at(place)]


def _at(place: Path) -> list[Saved]:
    if not place.is_dir():
        return [Saved(place, _kind(place))]
    names = [place / name for name in NAMES if (place / name).is_file()]
    names += sorted(p for p in place.glob("*.krs") if p not in names)
    if not names:
        raise KrsError(
            f"{str(place)!r} is a directory without a result in it: give a file, or the directory that a command of "
            "krs wrote"
        )
    return [Saved(name, _kind(name)) for name in names]


def _kind(path: Path) -> Kind:
    if not path.is_file():
        raise KrsError(f"no file {str(path)!r}")
    kind = {".krs": _kind_of_arrays, ".json": _kind_of_json, ".csv": _kind_of_table}.get(path.suffix.lower())
    known = kind(path) if kind is not None else None
    if known is None:
        raise KrsError(
            f"{str(path)!r} holds no result that krs can show: give a .krs file, answers.json, vocabulary.json, "
            f"the .json of a dissection, {REPORT} or drift.csv"
        )
    return known


def _kind_of_arrays(path: Path) -> Kind:
    """Whoever reads it says what is wrong with a damaged file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return "account" if "krs.account" in (file.metadata() or {}) else "sweep"
    except (SafetensorError, OSError):
        return "sweep"


def _kind_of_json(path: Path) -> Kind | None:
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as reason:
        raise KrsError(f"cannot read {str(path)!r} ({reason}): give a file that krs wrote") from None
    if not isinstance(told, dict):
        return None
    report: Kind | None = "report" if {"method", "config", "vanilla"} <= set(told) else None
    return next((kind for mark, kind in _MARKS.items() if mark in told), report)


def _kind_of_table(path: Path) -> Kind | None:
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        head = next(csv.reader(file), [])
    return "drift" if set(head) >= _DRIFT else None
