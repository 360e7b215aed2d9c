"""A study's directory: a folder a result, named by what it follows from; locks; and what has failed."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from krs.errors import KrsError
from krs.study.grid import Cell
from krs.study.manifest import NAME, Manifest, read_manifest
from krs.study.spec import Spec
from krs.writing import check_writable, clear_unfinished, write_text

_SPEC = "study.json"


@dataclass(frozen=True)
class Store:
    """The directory of a study.

    `steps/STEP/KEY/` holds the artefacts of one result with its manifest, `failed/CELL.json` why a cell has failed,
    `locks/` what is being worked on, `study.json` the spec as it was last run.
    """

    root: Path

    @property
    def spec_file(self) -> Path:
        """Where the spec is that was last run."""
        return self.root / _SPEC

    def begin(self, spec: Spec) -> bool:
        """Note the spec; returns whether a study was there. Raises `KrsError` where nothing can be written."""
        there = (self.root / _SPEC).exists()
        if self.root.is_dir() and not there and any(self.root.iterdir()):
            raise KrsError(f"{str(self.root)!r} is not empty, and holds no study: give another directory")
        check_writable(self.root / _SPEC, "study")
        (self.root / "locks").mkdir(parents=True, exist_ok=True)
        with self.lock("study"):
            clear_unfinished(self.root)
            write_text(self.root / _SPEC, spec.model_dump_json(indent=1))
        return there

    def spec(self) -> Spec:
        """The spec as it was last run; raises `KrsError` for a directory without a study."""
        try:
            return Spec.model_validate_json((self.root / _SPEC).read_text(encoding="utf-8"))
        except OSError:
            raise KrsError(f"there is no study in {str(self.root)!r}: give the directory of a krs study") from None
        except ValueError as reason:
            first = str(reason).splitlines()[0]
            raise KrsError(f"{str(self.root / _SPEC)!r} is damaged ({first}): run the study again") from None

    def folder(self, step: str, key: str) -> Path:
        """Where a result is, or will be."""
        return self.root / "steps" / step / key

    def lock(self, name: str) -> FileLock:
        """Held by the process that works on something; the system lets go of it when that process ends."""
        return FileLock(self.root / "locks" / f"{name}.lock")

    def find(self, step: str, key: str, *, thorough: bool = True) -> Manifest | None:
        """A finished result; with `thorough` every byte of its artefacts is looked at."""
        folder = self.folder(step, key)
        found = read_manifest(folder)
        if found is None or (found.step, found.key) != (step, key):
            return None
        return None if thorough and found.damaged(folder) else found

    def clear(self, step: str, key: str) -> None:
        """Remove a result, its manifest first."""
        folder = self.folder(step, key)
        (folder / NAME).unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)

    def fail(self, cell: Cell, told: dict[str, Any]) -> None:
        """Note why a cell has failed."""
        with self.lock("failed"):
            clear_unfinished(self._failure(cell).parent)
            write_text(self._failure(cell), json.dumps(told, indent=1, ensure_ascii=False))

    def failed(self, cell: Cell) -> dict[str, Any] | None:
        """Why a cell has failed, if it has."""
        try:
            return dict(json.loads(self._failure(cell).read_text(encoding="utf-8")))
        except (OSError, ValueError):
            return None

    def mend(self, cell: Cell) -> None:
        """A cell has not failed any more."""
        self._failure(cell).unlink(missing_ok=True)

    def _failure(self, cell: Cell) -> Path:
        return self.root / "failed" / f"{cell.name}.json"
