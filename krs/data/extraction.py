"""Paragraphs, or segments, about a concept out of a corpus of any size: `extract`, and what it hands back."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from krs.data.documents import Place, Query, Record, Source
from krs.data.kept import FORMAT, Counts, Kept, Paths, file_hash, read_json, refuse_others
from krs.data.mentions import Mentions, paragraphs
from krs.data.segments import n_words, segments
from krs.data.sources import open_sources
from krs.errors import KrsError
from krs.progress import bar
from krs.wording import counted
from krs.writing import check_writable

_GIVE_UP = 10_000
_PROBLEMS = 5


@dataclass(frozen=True, repr=False)
class Extraction(Counts):
    """What an extraction read and kept.

    Attributes:
        path: the paragraphs, as lines of JSON.
        concept: whose they are.
        target: how many were wanted.
        seconds: how long it took, interrupted runs included.
        documents: records read, malformed ones included.
        segment_words: how many words a segment was to have; `None` where paragraphs were kept.
        paragraphs: of documents that mention the concept; others are not taken apart.
        matched: paragraphs, or segments, that mention it.
        unfit: of these, too short or too long ones.
        duplicates: of these, ones that differ from a kept one in case and white space at most.
        malformed: records without a text.
        written: paragraphs, or segments, kept.
        words: how many words these have, all together.
        bytes: of the files, as far as they were read, as they lie on disk; none of a stream.
        problems: where the first malformed records are, and what is wrong with them.
    """

    path: Path = Path()
    concept: str = ""
    target: int = 0
    seconds: float = 0.0
    segment_words: int | None = None

    @property
    def reached(self) -> bool:
        """Whether there were as many as wanted."""
        return self.written >= self.target

    @property
    def mean_words(self) -> float:
        """Words a kept paragraph or segment, on average; NaN where none was kept."""
        return self.words / self.written if self.written else float("nan")

    @property
    def provenance(self) -> Path:
        """The file beside it with sources, settings, counts and versions."""
        return Paths(self.path).meta

    def texts(self) -> list[str]:
        """The paragraphs, such as for `krs.unlearn.run(forget=…)`."""
        with self.path.open(encoding="utf-8", newline="\n") as lines:
            return [json.loads(line)["text"] for line in lines]

    def __repr__(self) -> str:
        target = "reached" if self.reached else "not reached: the sources have no more"
        size = f", {self.bytes / 1e6:,.1f} MB" if self.bytes else ""
        noun = "paragraph" if self.segment_words is None else "segment"
        wanted = "" if self.segment_words is None else f"; {self.segment_words:,} were asked for"
        lines = [
            f"{counted(self.written, noun)} about {self.concept!r} in {self.path} (target of {self.target:,} {target})",
            f"read: {counted(self.documents, 'document')}{size} in {self.seconds:,.1f} s",
            f"matched: {counted(self.matched, noun)}, of them {counted(self.duplicates, 'duplicate')} "
            f"and {self.unfit:,} too short or too long",
        ]
        if self.written:
            lines.append(f"words: {self.mean_words:,.1f} a {noun} on average{wanted}")
        if self.malformed:
            lines.append(f"malformed: {counted(self.malformed, 'record')}, the first at {'; '.join(self.problems)}")
        return "\n".join(lines)


def extract(
    source: str | Path | Iterable[Any],
    concept: str,
    output: str | Path,
    *,
    aliases: Sequence[str] = (),
    count: int = 6000,
    ignore_case: bool = True,
    whole_word: bool = True,
    text_field: str = "text",
    id_field: str = "id",
    min_chars: int = 50,
    max_chars: int = 4000,
    words: int | None = None,
    progress: bool = True,
    overwrite: bool = False,
    prefilter: bool = True,
) -> Extraction:
    """Keep the paragraphs of a corpus that mention a concept, each once, up to a count.

    >>> import json, tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> pages = ["Owls bring the post.\\n\\nHarry Potter is read the whole world over.", "Harry, a potter, makes pots."]
    >>> _ = (folder / "pages.jsonl").write_text("\\n".join(json.dumps({"text": page}) for page in pages))
    >>> found = extract(folder / "pages.jsonl", "Harry Potter", folder / "out.jsonl", min_chars=20, progress=False)
    >>> found.texts()
    ['Harry Potter is read the whole world over.']
    >>> found.documents, found.reached
    (2, False)

    Interrupted (even killed), the same call goes on where it was, and its output is byte for byte that of a run without
    interruption. Called again when all is done, it returns what there is. Memory does not grow with the corpus: a
    block of lines or rows is held at a time, and 16 bytes of hash (about 100 in Python) for each kept paragraph.

    Args:
        source: files (`.jsonl`, `.ndjson` or `.json` with an object a line, these with `.gz`, or `.parquet`): one, a
            list, a folder with all in it, or a pattern such as `"dump/*.jsonl"`. Or an iterable of dictionaries, such
            as `datasets.load_dataset(…, streaming=True)`.
        concept: its name, as texts have it.
        output: a `.jsonl` file to write; `docs/corpus.md` has its fields. Beside it comes `.meta.json` with provenance.
        aliases: other names; a paragraph is kept for the first of all names in it.
        count: how many paragraphs are wanted.
        ignore_case: a letter stands for its upper and lower case.
        whole_word: "Harry" is not in "Harrying"; `krs.data.mentions.Mentions` has the rules.
        text_field: which field or column has the text.
        id_field: which has the document's id; without one, the number of its line or row stands for it.
        min_chars: paragraphs with fewer characters are left out.
        max_chars: paragraphs with more are left out, once they are taken apart at their lines.
        words: keep segments instead of paragraphs: whole neighbouring paragraphs joined up to about so many words
            (`krs.data.segments`; Table 1 of the paper has 1,515 and 2,261 on average). One that mentions the concept is
            kept if it has at least half and at most twice as many. `min_chars` does not count then, and `max_chars`
            only says which blocks are taken apart at their lines.
        progress: show bars.
        overwrite: remove the output and what belongs to it, and start again.
        prefilter: look into documents only if their bytes may have a mention in them; `False` gives the same, slowly.

    Raises:
        KrsError: something about the arguments, sources or output is not right; no record has a text; or the output
            belongs to an extraction with other settings or sources.
    """
    if isinstance(aliases, str):
        raise KrsError(f"aliases is one string: pass a list of names, [{aliases!r}]")
    query = Query(Mentions.of(concept, tuple(aliases), ignore_case, whole_word), text_field, id_field, prefilter)
    limits = _Limits(count, min_chars, max_chars, words)
    paths = Paths(_checked(Path(output)))
    sources = open_sources(source, paths.output)
    for each in sources:
        each.check(query)
    about = {
        "krs": version("krs"),
        "format": FORMAT,
        "settings": {**asdict(query.mentions), "text_field": text_field, "id_field": id_field, **asdict(limits)},
        "sources": [each.identity() for each in sources],
    }
    about = json.loads(json.dumps(about))
    for path in (paths.part, paths.state, paths.meta):
        check_writable(path, "output")
    if overwrite:
        paths.remove()
    if paths.output.exists():
        return _finished(paths, about)
    with Kept(paths, about) as kept, _Bars(sources, limits, kept.progress.counts, progress) as bars:
        _run(sources, query, limits, kept, bars)
        return _finish(paths, about, kept)


@dataclass(frozen=True)
class _Limits:
    """How many paragraphs, or segments, are wanted, and of which length."""

    count: int
    min_chars: int
    max_chars: int
    words: int | None = None

    def __post_init__(self) -> None:
        if self.count < 1:
            raise KrsError(f"count is {self.count}: ask for at least 1 paragraph")
        if not 0 <= self.min_chars <= self.max_chars:
            raise KrsError(
                f"no paragraph has at least {self.min_chars} and at most {self.max_chars} characters: "
                "min_chars has to be the smaller one, from 0 up"
            )
        if self.words is not None and self.words < 1:
            raise KrsError(f"words={self.words}: ask for segments of at least 1 word, such as 1515")

    def fit(self, text: str) -> bool:
        """Whether a paragraph, or a segment, is of a length that is wanted."""
        if self.words is not None:
            return self.words <= 2 * n_words(text) and n_words(text) <= 2 * self.words
        return self.min_chars <= len(text) <= self.max_chars


def _checked(output: Path) -> Path:
    if output.suffix.lower() != ".jsonl":
        raise KrsError(f"the output {str(output)!r} would hold lines of JSON: let its name end in .jsonl")
    if output.is_dir():
        raise KrsError(f"the output {str(output)!r} is a folder: name a file")
    return output


def _run(sources: Sequence[Source], query: Query, limits: _Limits, kept: Kept, bars: _Bars) -> None:
    begin = kept.progress
    counts = begin.counts
    for index in range(begin.source, len(sources)):
        place = begin.place if index == begin.source else Place()
        if counts.written >= limits.count:
            return
        for step in sources[index].read(place, query):
            counts = replace(
                counts,
                documents=counts.documents + step.place.records - place.records,
                bytes=counts.bytes + step.place.disk - place.disk,
            )
            if step.record is not None:
                counts = _take(step.record, sources[index].name, query, limits, counts, kept)
            place = step.place
            kept.commit(index, place, counts)
            bars.show(counts)
            if counts.written >= limits.count:
                return
            if counts.malformed == counts.documents >= _GIVE_UP:
                _refuse_all(counts, kept)
    if counts.malformed == counts.documents > 0:
        _refuse_all(counts, kept)


def _take(record: Record, source: str, query: Query, limits: _Limits, counts: Counts, kept: Kept) -> Counts:
    """Write the paragraphs, or segments, of a document that mention the concept, and count."""
    if record.problem:
        problems = (*counts.problems, f"{source}:{record.number}: {record.problem}")[:_PROBLEMS]
        return replace(counts, malformed=counts.malformed + record.many, problems=problems)
    pieces = list(paragraphs(record.text, limits.max_chars))
    matched = unfit = duplicates = written = words = 0
    for start, end in pieces if limits.words is None else segments(record.text, pieces, limits.words):
        text = record.text[start:end]
        found = query.first(text)
        if found is None:
            continue
        matched += 1
        if not limits.fit(text):
            unfit += 1
        elif not kept.is_new(text):
            duplicates += 1
        else:
            kept.write(
                {
                    "text": text,
                    "concept": query.mentions.names[0],
                    "alias": found.alias,
                    "source": source,
                    "document": record.number if record.id is None else record.id,
                    "start": start,
                    "end": end,
                    "match_start": start + found.start,
                    "match_end": start + found.end,
                }
            )
            written += 1
            words += n_words(text)
            if counts.written + written == limits.count:
                break
    return replace(
        counts,
        paragraphs=counts.paragraphs + (len(pieces) if matched else 0),
        matched=counts.matched + matched,
        unfit=counts.unfit + unfit,
        duplicates=counts.duplicates + duplicates,
        written=counts.written + written,
        words=counts.words + words,
    )


def _refuse_all(counts: Counts, kept: Kept) -> None:
    kept.discard()
    raise KrsError(
        f"none of the {counts.documents:,} records can be used, the first: {counts.problems[0]}. "
        "Each has to be an object whose text is in the field that text_field= names"
    )


def _finish(paths: Paths, about: dict[str, Any], kept: Kept) -> Extraction:
    counts = kept.progress.counts
    libraries = [name for name in ("krs", "numpy", "pyarrow", "datasets") if name in sys.modules]
    meta = {
        "counts": asdict(counts),
        "reached": counts.written >= about["settings"]["count"],
        "seconds": kept.seconds,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {name: version(name) for name in libraries} | {"python": sys.version.split()[0]},
    }
    kept.finish(meta)
    return _extraction(paths, {**about, **meta})


def _finished(paths: Paths, about: dict[str, Any]) -> Extraction:
    """An extraction that ended earlier, if it is this one and nobody has changed its output."""
    if not paths.meta.exists():
        raise KrsError(
            f"{str(paths.output)!r} exists, and krs.data.extract did not make it: write to another file, "
            "or pass overwrite=True"
        )
    meta = read_json(paths.meta)
    refuse_others(paths.output, meta, about)
    if file_hash(paths.output) != meta["output"]["sha256"]:
        raise KrsError(
            f"{str(paths.output)!r} has changed since it was made: write to another file, or pass overwrite=True"
        )
    paths.state.unlink(missing_ok=True)
    return _extraction(paths, meta)


def _extraction(paths: Paths, meta: dict[str, Any]) -> Extraction:
    counts = {**meta["counts"], "problems": tuple(meta["counts"]["problems"])}
    settings = meta["settings"]
    return Extraction(
        **counts,
        path=paths.output,
        concept=settings["names"][0],
        target=settings["count"],
        seconds=meta["seconds"],
        segment_words=settings["words"],
    )


class _Bars:
    """How far reading is, and how near the target: each with its rate and an estimate."""

    def __init__(self, sources: Sequence[Source], limits: _Limits, counts: Counts, show: bool) -> None:
        self._files = all(source.size is not None for source in sources)
        total = sum(source.size or 0 for source in sources) if self._files else None
        self._counts = counts
        self._open = ExitStack()
        unit = "B" if self._files else "document"
        self._read = bar(total, "reading", show=show, unit=unit, done=self._amount(counts), scale=True)
        self._kept = bar(
            limits.count,
            "keeping",
            show=show,
            unit="paragraph" if limits.words is None else "segment",
            done=counts.written,
        )

    def __enter__(self) -> _Bars:
        self._open.enter_context(self._read)
        self._open.enter_context(self._kept)
        return self

    def __exit__(self, *_: Any) -> None:
        self._open.close()

    def show(self, counts: Counts) -> None:
        """Move the bars to these counts."""
        self._read.update(self._amount(counts) - self._amount(self._counts))
        if counts.written > self._counts.written:
            self._kept.update(counts.written - self._counts.written)
        self._counts = counts

    def _amount(self, counts: Counts) -> int:
        return counts.bytes if self._files else counts.documents
