"""Documents one after the other, each with its place: what every kind of source yields."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from krs.data.mentions import Mention, Mentions
from krs.errors import KrsError
from krs.wording import kind

_ENDS = 64 * 1024


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
            return Record(number, problem=f"holds {kind(fields)}, not an object with fields")
        if self.text_field not in fields:
            return Record(number, problem=f"has no field {self.text_field!r}; {listed(fields)}")
        text, id = fields[self.text_field], fields.get(self.id_field)
        if not isinstance(text, str):
            return Record(number, problem=f"its {self.text_field!r} is {kind(text)}, not a text")
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


def unreadable(path: Path, reason: OSError) -> KrsError:
    """What to say of a file that the system does not give out."""
    return KrsError(f"{str(path)!r} cannot be read ({reason.strerror}): leave it out, or mend that")
