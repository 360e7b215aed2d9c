"""What an extraction has kept so far: paragraphs (or segments) in a file, and beside it how far it has come."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from krs.data.documents import Place
from krs.errors import KrsError
from krs.writing import write_text

FORMAT = 2
_SECONDS_APART = 1.0
_DIGEST = 16


@dataclass(frozen=True)
class Counts:
    """What has been read and kept; `Extraction` says what each number is."""

    documents: int = 0
    paragraphs: int = 0
    matched: int = 0
    unfit: int = 0
    duplicates: int = 0
    malformed: int = 0
    written: int = 0
    bytes: int = 0
    words: int = 0
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class Progress:
    """A moment between two documents: which source, where in it, the counts, and how long the output was."""

    source: int = 0
    place: Place = field(default_factory=Place)
    counts: Counts = field(default_factory=Counts)
    length: int = 0

    @staticmethod
    def of(saved: dict[str, Any]) -> Progress:
        """From its form as JSON."""
        counts = Counts(**{**saved["counts"], "problems": tuple(saved["counts"]["problems"])})
        return Progress(saved["source"], Place(*saved["place"]), counts, saved["length"])


@dataclass(frozen=True)
class Paths:
    """The files of an extraction: finished, unfinished, how far it is, and where it comes from."""

    output: Path

    @property
    def part(self) -> Path:
        """Paragraphs of an extraction that has not ended."""
        return self.output.with_name(f"{self.output.name}.part")

    @property
    def state(self) -> Path:
        """How far it has come."""
        return self.output.with_name(f"{self.output.name}.state.json")

    @property
    def meta(self) -> Path:
        """Sources, settings, counts and versions of one that has ended."""
        return self.output.with_name(f"{self.output.name}.meta.json")

    def remove(self) -> None:
        """All four, as far as they are there."""
        for path in (self.state, self.part, self.meta, self.output):
            path.unlink(missing_ok=True)


class Kept:
    """The paragraphs kept so far, as a context manager: whatever ends it, a later one goes on behind them.

    Paragraphs are appended to a part file. Once a second, and at the end, the state file is replaced: it says how long
    the part file was between two documents, and what is behind that is cut off when a later run goes on.
    """

    def __init__(self, paths: Paths, about: dict[str, Any]) -> None:
        self._paths = paths
        self._about = about
        self._open = ExitStack()
        self._seen: set[bytes] = set()
        self.seconds_before = 0.0
        self.progress = Progress()
        if paths.state.exists():
            self._resume()
        elif paths.part.exists():
            raise KrsError(f"{str(paths.part)!r} exists without its state file: remove it, or pass overwrite=True")

    def _resume(self) -> None:
        saved = read_json(self._paths.state)
        refuse_others(self._paths.output, saved, self._about)
        self.progress = Progress.of(saved)
        self.seconds_before = saved["seconds"]
        length = self._paths.part.stat().st_size if self._paths.part.exists() else 0
        if length < self.progress.length:
            raise KrsError(
                f"{str(self._paths.part)!r} has {length} bytes where its state file speaks of {self.progress.length}: "
                "pass overwrite=True to start again"
            )

    def __enter__(self) -> Kept:
        self._paths.output.parent.mkdir(parents=True, exist_ok=True)
        self._begun = self._saved_at = time.monotonic()
        if not self._paths.part.exists():
            self._save(self.progress)
        self._file = self._open.enter_context(self._paths.part.open("ab"))
        self._file.truncate(self.progress.length)
        self._length = self.progress.length
        with self._paths.part.open("rb") as lines:
            for line in lines:
                self.is_new(json.loads(line)["text"])
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with self._open:
            if self._paths.part.exists():
                self._save(self.progress)

    @property
    def seconds(self) -> float:
        """How long this has been going on, earlier runs included."""
        return self.seconds_before + time.monotonic() - self._begun

    def is_new(self, text: str) -> bool:
        """Whether no such paragraph is kept yet, apart from case and white space; from now on there is."""
        digest = hashlib.blake2b(" ".join(text.split()).lower().encode("utf-8", "surrogatepass"), digest_size=_DIGEST)
        before = len(self._seen)
        self._seen.add(digest.digest())
        return len(self._seen) > before

    def write(self, paragraph: dict[str, Any]) -> None:
        """Append a line."""
        try:
            line = json.dumps(paragraph, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError:
            line = json.dumps(paragraph).encode("ascii")
        self._length += self._file.write(line + b"\n")

    def commit(self, source: int, place: Place, counts: Counts) -> None:
        """All that belongs to the documents up to here is written: a later run may go on here."""
        self.progress = Progress(source, place, counts, self._length)
        if time.monotonic() - self._saved_at > _SECONDS_APART:
            self._save(self.progress)

    def finish(self, meta: dict[str, Any]) -> None:
        """Put the output and its provenance where they belong."""
        self._save(self.progress)
        self._file.close()
        about = {"bytes": self._length, "sha256": file_hash(self._paths.part)}
        write_json(self._paths.meta, {**self._about, **meta, "output": about})
        self._paths.part.replace(self._paths.output)
        self._paths.state.unlink()

    def _save(self, progress: Progress) -> None:
        if hasattr(self, "_file") and not self._file.closed:
            self._file.flush()
            os.fsync(self._file.fileno())
        write_json(self._paths.state, {**self._about, **asdict(progress), "seconds": self.seconds})
        self._saved_at = time.monotonic()

    def discard(self) -> None:
        """Leave nothing behind."""
        self._file.close()
        self._paths.part.unlink()
        self._paths.state.unlink()


def refuse_others(output: Path, saved: dict[str, Any], about: dict[str, Any]) -> None:
    """Raise `KrsError` if what was saved belongs to an extraction with other settings or from other sources."""
    if saved.get("format") != FORMAT:
        raise KrsError(f"{str(output)!r} was begun by another version of krs: pass overwrite=True to start again")
    there, here = saved["settings"], about["settings"]
    differ = [
        f"{name} is {there.get(name)!r} there and {here[name]!r} here" for name in here if there.get(name) != here[name]
    ]
    differ = differ or _changed(saved["sources"], about["sources"])
    if differ:
        raise KrsError(
            f"{str(output)!r} holds another extraction: {'; '.join(differ)}. Write to another file, "
            "or pass overwrite=True"
        )


def _changed(there: Sequence[dict[str, Any]], here: Sequence[dict[str, Any]]) -> list[str]:
    names = [[source["name"] for source in sources] for sources in (there, here)]
    if names[0] != names[1]:
        return [f"its sources are {_few(names[0])} there and {_few(names[1])} here"]
    return [
        f"source {old['name']!r} has changed ({', '.join(k for k in {**old, **new} if old.get(k) != new.get(k))})"
        for old, new in zip(there, here, strict=True)
        if old != new
    ]


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def read_json(path: Path) -> dict[str, Any]:
    """What `write_json` wrote; raises `KrsError` for anything else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        found = None
    if not isinstance(found, dict) or not {"krs", "settings", "sources"} <= set(found):
        raise KrsError(
            f"{str(path)!r} was not written by krs.data.extract: write to another file, or pass overwrite=True"
        )
    return found


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Replace a file in one step."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def file_hash(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
