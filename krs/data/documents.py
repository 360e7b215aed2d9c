"""Documents one after the other, each with its place, from whatever a corpus comes as."""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from krs.data.mentions import Mention, Mentions
from krs.errors import KrsError

_ENDS = 64 * 1024
LINES = (".jsonl", ".ndjson", ".json")
ENDINGS = (*LINES, *(f"{ending}.gz" for ending in LINES), ".parquet")


class Place(NamedTuple):
    """How far a source has been read.

    Attributes:
        records: documents so far, malformed ones included.
        line: lines so far; those of files of lines.
        offset: where to go on: bytes of the text, uncompressed; of files of lines.
        disk: bytes of the file so far.
        usable: whether any document so far had a text.
    """

    records: int = 0
    line: int = 0
    offset: int = 0
    disk: int = 0
    usable: bool = False


class Record(NamedTuple):
    """A document: its text and id, or what is wrong with it, or with `many` in one."""

    number: int
    text: str = ""
    id: str | None = None
    problem: str = ""
    many: int = 1


class Step(NamedTuple):
    """Reading has come to `place`, the end of `record`; without one, no document up to there mentions the concept."""

    record: Record | None
    place: Place


@dataclass(frozen=True)
class Query:
    """What readers need to know: the fields of a record, and what need not be looked at closely.

    Attributes:
        mentions: names of the concept.
        text_field: which field has the text.
        id_field: which has the id.
        prefilter: leave out documents that cannot mention the concept; `False` yields every document.
    """

    mentions: Mentions
    text_field: str
    id_field: str
    prefilter: bool = True

    def record(self, fields: Any, number: int) -> Record:
        """The text and the id among the fields of a document."""
        if not isinstance(fields, Mapping):
            return Record(number, problem=f"holds a {type(fields).__name__}, not an object with fields")
        if self.text_field not in fields:
            return Record(number, problem=f"has no field {self.text_field!r}; {listed(fields)}")
        text, id = fields[self.text_field], fields.get(self.id_field)
        if not isinstance(text, str):
            return Record(number, problem=f"its {self.text_field!r} is a {type(text).__name__}, not a text")
        named = isinstance(id, str | int) and not isinstance(id, bool)
        return Record(number, text, str(id) if named else None)

    def first(self, text: str) -> Mention | None:
        """The first mention in a text."""
        return None if self.prefilter and not self.mentions.may_be_in(text) else self.mentions.first(text)


@runtime_checkable
class Source(Protocol):
    """Something that documents come from."""

    @property
    def name(self) -> str:
        """What the output calls it."""

    @property
    def size(self) -> int | None:
        """Bytes on disk; of a stream none."""

    def identity(self) -> dict[str, Any]:
        """What tells it from others, as JSON."""

    def check(self, query: Query) -> None:
        """Raise `KrsError` if it can be seen at once that it cannot be read."""

    def read(self, place: Place, query: Query) -> Iterator[Step]:
        """The documents behind a place."""


def listed(fields: Iterable[Any]) -> str:
    """Names of fields, for messages.

    >>> listed(["id", "content"])
    "its fields are 'content', 'id'"
    """
    names = sorted(map(str, fields))
    shown = ", ".join(map(repr, names[:12])) + (" …" if len(names) > 12 else "")
    return f"its fields are {shown}" if names else "it has no fields"


def open_sources(source: str | Path | Iterable[Any], output: Path) -> list[Source]:
    """Files in the order given, those of a folder or a pattern by name; or one stream.

    Raises:
        KrsError: there are no such files, one has an ending that is not known, or the output would be one of them.
    """
    from krs.data.lines import LineFile
    from krs.data.streams import Stream
    from krs.data.tables import ParquetFile

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


def file_identity(path: Path, name: str) -> dict[str, Any]:
    """Name, size, time of the last change, and a hash of the first and the last 64 KiB."""
    try:
        about = path.stat()
        with path.open("rb") as file:
            ends = hashlib.sha256(file.read(_ENDS))
            file.seek(max(0, about.st_size - _ENDS))
            ends.update(file.read(_ENDS))
    except OSError as reason:
        raise unreadable(path, reason) from None
    return {"name": name, "bytes": about.st_size, "modified_ns": about.st_mtime_ns, "sha256_ends": ends.hexdigest()}


def _as_paths(source: str | Path | Iterable[Any]) -> list[Path] | None:
    if isinstance(source, str | Path):
        return [Path(source)]
    if isinstance(source, Mapping):
        keys = ", ".join(map(repr, list(source)[:4]))
        raise KrsError(f"the source is a {type(source).__name__} with {keys}: hand in one of its values")
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


def unreadable(path: Path, reason: OSError) -> KrsError:
    """What to say of a file that the system does not give out."""
    return KrsError(f"{str(path)!r} cannot be read ({reason.strerror}): leave it out, or mend that")
