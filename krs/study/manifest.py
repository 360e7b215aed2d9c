"""What a finished step leaves beside its artefacts: what it was made from, and what each file has to be."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import xxhash

from krs.writing import write_text

NAME = "manifest.json"
LOG = "log.txt"
_FORMAT = 1
_CHUNK = 2**22


@dataclass(frozen=True)
class Manifest:
    """Of one finished step.

    Attributes:
        step: its name.
        key: of its folder: a digest of `inputs`, which is everything that its result follows from.
        inputs: its options, the results of the steps before it, models' identities, versions, the seed.
        content: a digest of what later steps and people read from its result; two runs with the same numbers have the
            same, whenever they were made.
        artefacts: by name within the folder, `{"bytes", "xxh3"}`.
        cell: where in the grid it was made first.
        seconds: how long it took, all calls together.
        made: when.
        log: the name of its log file.
        warnings: what krs warned of.
        kept: of unlearned weights.
    """

    step: str
    key: str
    inputs: dict[str, Any]
    content: str
    artefacts: dict[str, dict[str, Any]]
    cell: dict[str, Any]
    seconds: float
    made: str
    log: str = LOG
    warnings: list[str] = field(default_factory=list)
    kept: str = "weights"

    def write(self, folder: Path) -> None:
        """Into the step's folder, as the last of its files."""
        told = {"krs_study": _FORMAT, **asdict(self)}
        told["digest"] = digest_of(told)
        write_text(folder / NAME, json.dumps(told, indent=1, ensure_ascii=False))

    def damaged(self, folder: Path) -> list[str]:
        """Names of artefacts that are missing, or not what they were."""
        return [name for name, about in self.artefacts.items() if not _is(folder / name, about)]

    def with_artefacts(self, folder: Path, names: list[str], **changes: Any) -> Manifest:
        """The same of other files."""
        return replace(self, artefacts=artefacts(folder, names), **changes)


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a folder; `None` where there is none, or one that is not whole."""
    try:
        told = json.loads((folder / NAME).read_text(encoding="utf-8"))
        digest = told.pop("digest")
        return Manifest(**told) if digest == digest_of(told) and told.pop("krs_study") == _FORMAT else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def artefacts(folder: Path, names: list[str] | None = None) -> dict[str, dict[str, Any]]:
    """Size and digest of files in a folder; of all but manifest and log if no names are given."""
    if names is None:
        found = (p for p in folder.rglob("*") if p.is_file())
        names = sorted(str(p.relative_to(folder)) for p in found)
        names = [n for n in names if n not in (NAME, LOG) and not Path(n).name.startswith(".krs-")]
    return {name: {"bytes": (folder / name).stat().st_size, "xxh3": file_digest(folder / name)} for name in names}


def file_digest(path: Path) -> str:
    """XXH3-128 of a file's bytes."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while part := file.read(_CHUNK):
            digest.update(part)
    return digest.hexdigest()


def digest_of(value: Any) -> str:
    """XXH3-128 of a value as JSON."""
    return xxhash.xxh3_128(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def _is(path: Path, about: dict[str, Any]) -> bool:
    try:
        return path.stat().st_size == about["bytes"] and file_digest(path) == about["xxh3"]
    except OSError:
        return False
