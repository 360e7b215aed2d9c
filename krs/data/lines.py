"""Documents as lines of JSON, in plain or gzip files, a block of lines at a time."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from jaxtyping import Bool, Int64

from krs.data.documents import Place, Query, Record, Step, file_identity, unreadable
from krs.data.sieve import Sieve
from krs.errors import KrsError

_BLOCK = 512 * 1024
_LONGEST = 64 * 1024 * 1024
_TOO_LONG = f"is longer than {_LONGEST >> 20} MiB"
_BOM = b"\xef\xbb\xbf"
_WIDE = (b"\xff\xfe", b"\xfe\xff")  # marks of UTF-16, the first of UTF-32 too; without one there are zero bytes


class Chunk(NamedTuple):
    """Whole lines, and where they end in text and file; or, without lines, what is wrong with the line there."""

    lines: bytes
    offset: int
    disk: int
    problem: str = ""


@dataclass(frozen=True)
class LineFile:
    """A file with a JSON object a line, `.gz` or not."""

    path: Path
    name: str

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return self.path.stat().st_size

    def identity(self) -> dict[str, Any]:
        """What tells this file from others and from a changed one."""
        return file_identity(self.path, self.name)

    def check(self, query: Query) -> None:
        """Raise `KrsError` for a file in UTF-16 or UTF-32; what else is wrong with a line shows when it is read."""
        try:
            with self.path.open("rb", buffering=0) as file:
                first = next(_inflated(file) if _is_packed(self.path) else _plain(file, 0), (b"", 0, 0))[0]
        except _DamageError:
            return
        except OSError as reason:
            raise unreadable(self.path, reason) from None
        if first.startswith(_WIDE) or b"\0" in first[:4]:
            raise KrsError(f"{str(self.path)!r} is UTF-16 or UTF-32 text: save it as UTF-8, which lines of JSON are in")

    def read(self, place: Place, query: Query) -> Iterator[Step]:
        """Lines behind a place that may mention the concept or are malformed; all of them without prefilter."""
        packed = _is_packed(self.path)
        reader = _Reader(query, Sieve(query.mentions), packed)
        with self.path.open("rb", buffering=0) as file:
            blocks = _inflated(file) if packed else _plain(file, place.offset)
            for chunk in _chunks(blocks, place.offset):
                for step in reader.steps(chunk, place):
                    place = step.place
                    yield step


def _is_packed(path: Path) -> bool:
    return path.name.lower().endswith(".gz")


class _DamageError(Exception):
    """The compressed data cannot be read any further."""


def _plain(file: BinaryIO, offset: int) -> Iterator[tuple[bytes, int, int]]:
    """Blocks, each with where it ends in the text and in the file."""
    file.seek(offset)
    while block := file.read(_BLOCK):
        offset += len(block)
        yield block, offset, offset


def _inflated(file: BinaryIO) -> Iterator[tuple[bytes, int, int]]:
    """The same of gzip members one after the other; everything in front of damage is still handed out."""
    decoder, offset, disk, begun = zlib.decompressobj(31), 0, 0, False
    while packed := file.read(_BLOCK // 2):
        disk += len(packed)
        while packed:
            begun = True
            try:
                block = decoder.decompress(packed, _BLOCK)
            except zlib.error as reason:
                raise _DamageError(f"the gzip data is damaged from here on ({reason})") from None
            offset += len(block)
            if block:
                yield block, offset, disk
            packed = decoder.unconsumed_tail
            if decoder.eof:
                packed = decoder.unused_data.lstrip(b"\0")
                decoder, begun = zlib.decompressobj(31), False
    if begun:
        raise _DamageError("the gzip data ends too early")


def _chunks(blocks: Iterator[tuple[bytes, int, int]], start: int) -> Iterator[Chunk]:
    """Whole lines behind `start`; one that is too long to be kept is told of and left out."""
    rest: list[bytes] = []
    length, end, disk = 0, 0, 0
    try:
        for whole, end, disk in blocks:
            block = whole[max(0, len(whole) - max(0, end - start)) :]
            begin, cut = 0, block.rfind(b"\n") + 1
            if cut and length + block.find(b"\n") >= _LONGEST:
                begin = block.find(b"\n") + 1
                yield Chunk(b"", end - len(block) + begin, disk, _TOO_LONG)
                rest = []
            if begin < cut:
                yield Chunk(b"".join([*rest, block[begin:cut]]), end - len(block) + cut, disk)
            if cut:
                rest, length = [], 0
            length += len(block) - cut
            rest = [*rest, block[cut:]] if length < _LONGEST else []
    except _DamageError as damage:
        if end >= start:
            yield Chunk(b"", end + 1, disk, str(damage))  # one behind, so that it is not told of again from there
        return
    if length >= _LONGEST:
        yield Chunk(b"", end, disk, _TOO_LONG)
    elif length:
        yield Chunk(b"".join(rest), end, disk)


@dataclass(frozen=True)
class _Reader:
    query: Query
    sieve: Sieve
    packed: bool

    def steps(self, chunk: Chunk, place: Place) -> Iterator[Step]:
        """The lines of a chunk that begins at `place`, as far as there is something to say about them."""
        after = place._replace(offset=chunk.offset, disk=chunk.disk)
        if chunk.problem:
            after = after._replace(records=place.records + 1, line=place.line + 1)
            yield Step(Record(after.line, problem=chunk.problem), after)
            return
        lines = _Lines.of(chunk, first=place.offset == 0)
        begin, blank, usable = chunk.offset - len(chunk.lines), 0, place.usable
        for index in self._worth_a_look(lines, usable):
            raw = lines.line(index)
            if not raw:
                blank += 1
                continue
            record = self._record(raw, place.line + index + 1, usable)
            if record is not None:
                usable = usable or not record.problem
                end = min(chunk.offset, begin + int(lines.ends[index]) + 1)
                disk = chunk.disk if self.packed else end
                yield Step(record, Place(place.records + index + 1 - blank, record.number, end, disk, usable))
        records, line = place.records + len(lines.ends) - blank, place.line + len(lines.ends)
        yield Step(None, after._replace(records=records, line=line, usable=usable))

    def _worth_a_look(self, lines: _Lines, usable: bool) -> list[int]:
        if not self.query.prefilter or not usable:
            return list(range(len(lines.ends)))
        return [int(i) for i in np.flatnonzero(~lines.tidy | lines.candidates(self.sieve))]

    def _record(self, raw: bytes, number: int, usable: bool) -> Record | None:
        """A line as a document; `None` if there is nothing to say about it.

        A line in braces that cannot mention the concept counts as a document unseen, well-formed or not, except in
        front of the first usable one. So no count depends on the prefilter.
        """
        told = not usable or not (raw.startswith(b"{") and raw.endswith(b"}"))
        if self.query.prefilter and not told and not self.sieve.may_mention(raw):
            return None
        record = _parsed(raw, number, self.query)
        if record.problem and not told and not self.sieve.may_mention(raw):
            return None
        return record


def _parsed(raw: bytes, number: int, query: Query) -> Record:
    try:
        return query.record(json.loads(raw.decode("utf-8")), number)
    except UnicodeDecodeError:
        problem = "is not UTF-8"
    except json.JSONDecodeError as reason:
        problem = f"is not valid JSON ({reason.msg} at character {reason.pos + 1})"
    except (ValueError, RecursionError) as reason:
        problem = f"is not JSON that Python can read ({reason})"
    return Record(number, problem=problem)


@dataclass(frozen=True)
class _Lines:
    """The lines of a chunk, as positions in its bytes."""

    raw: bytes
    starts: Int64[np.ndarray, " lines"]
    ends: Int64[np.ndarray, " lines"]
    tidy: Bool[np.ndarray, " lines"]

    @staticmethod
    def of(chunk: Chunk, first: bool) -> _Lines:
        """`tidy` are those that begin with a brace and end with one."""
        raw = chunk.lines
        if first and raw.startswith(_BOM):
            raw = b"   " + raw[3:]
        block = np.frombuffer(raw, np.uint8)
        ends = np.flatnonzero(block == ord("\n"))
        if not raw.endswith(b"\n"):
            ends = np.append(ends, len(raw))
        starts = np.concatenate([np.zeros(1, np.int64), ends[:-1] + 1])
        last = np.maximum(ends - 1, 0)
        last = np.where(block[last] == ord("\r"), np.maximum(last - 1, 0), last)
        tidy = (last > starts) & (block[starts] == ord("{")) & (block[last] == ord("}"))
        return _Lines(raw, starts, ends, tidy)

    def line(self, index: int) -> bytes:
        """A line without white space around it."""
        return self.raw[self.starts[index] : self.ends[index]].strip()

    def candidates(self, sieve: Sieve) -> Bool[np.ndarray, " lines"]:
        """Which lines the sieve does not rule out at a glance."""
        found = sieve.candidates(np.frombuffer(self.raw, np.uint8))
        if found is None:
            return np.ones(len(self.ends), bool)
        here = np.zeros(len(self.ends), bool)
        here[np.searchsorted(self.ends, found)] = True
        return here
