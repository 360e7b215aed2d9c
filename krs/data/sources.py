"""What a corpus comes as: files of lines, tables, or a stream of documents."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from krs.data.documents import Source
from krs.data.lines import LineFile
from krs.data.streams import Stream
from krs.data.tables import ParquetFile
from krs.errors import KrsError
from krs.wording import kind

LINES = (".jsonl", ".ndjson", ".json")
ENDINGS = (*LINES, *(f"{ending}.gz" for ending in LINES), ".parquet")


def open_sources(source: str | Path | Iterable[Any], output: Path) -> list[Source]:
    """Files in the order given, those of a folder or a pattern by name; or one stream.

    Raises:
        KrsError: there are no such files, one has an ending that is not known, or the output would be one of them.
    """
    paths = _as_paths(source)
    if paths is None:
        return [Stream.of(source)]
    named = [found for path in paths for found in _expand(path, output)]
    if any(path.resolve() == output.resolve() for path, _ in named):
        raise KrsError(f"the output {str(output)!r} is one of the sources: write to another file")
    distinct = len({name for _, name in named}) == len(named)
    sources: list[Source] = []
    for path, name in named:
        shown = name if distinct else str(path)
        is_table = path.name.lower().endswith(".parquet")
        sources.append(ParquetFile(path, shown) if is_table else LineFile(path, shown))
    return sources


def _as_paths(source: str | Path | Iterable[Any]) -> list[Path] | None:
    if isinstance(source, str | Path):
        return [Path(source)]
    if isinstance(source, Mapping):
        keys = ", ".join(map(repr, list(source)[:4]))
        raise KrsError(f"the source is {kind(source)} with {keys}: hand in one of its values")
    if isinstance(source, list | tuple):
        if not source:
            raise KrsError("the source is an empty list: give at least one file or document")
        if all(isinstance(path, str | Path) for path in source):
            return [Path(path) for path in source]
    return None


def _expand(path: Path, output: Path) -> list[tuple[Path, str]]:
    if path.is_dir():
        found = sorted(p for p in path.rglob("*") if p.is_file() and p.name.lower().endswith(ENDINGS))
        if not found:
            raise KrsError(f"there is no corpus file in {str(path)!r}: krs reads {', '.join(ENDINGS)}")
        if output.resolve().is_relative_to(path.resolve()):
            raise KrsError(f"the output {str(output)!r} lies in the folder of the sources: write to another folder")
        return [(p, p.relative_to(path).as_posix()) for p in found]
    if path.is_file():
        return [(_known(path), path.name)]
    matching = sorted(Path(p) for p in glob.glob(str(path), recursive=True) if Path(p).is_file())
    if not matching:
        raise KrsError(f"no file, folder or pattern of files {str(path)!r}")
    return [(_known(p), p.name) for p in matching]


def _known(path: Path) -> Path:
    if not path.name.lower().endswith(ENDINGS):
        raise KrsError(f"{str(path)!r} has an ending that krs does not know: it reads {', '.join(ENDINGS)}")
    return path
