"""Documents from streams: `datasets` that are loaded or streamed, and any other iterable of dictionaries."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from krs.data.documents import Place, Query, Step
from krs.errors import KrsError
from krs.wording import kind


@dataclass(frozen=True)
class Stream:
    """An iterable of documents, which is read once from the beginning to where there is enough."""

    records: Iterable[Any]
    name: str
    size: int | None = None

    @staticmethod
    def of(source: Any) -> Stream:
        """A stream with the name of its dataset; raises `KrsError` for what cannot be iterated over."""
        if not isinstance(source, Iterable):
            raise KrsError(
                f"the source is {kind(source)}: hand in files, or an iterable of documents such as "
                "datasets.load_dataset(…, streaming=True)"
            )
        info = getattr(source, "info", None)
        name = getattr(info, "dataset_name", None) or getattr(info, "builder_name", None) or "stream"
        return Stream(source, str(name))

    def identity(self) -> dict[str, Any]:
        """Name, split, and a hash of the first document where looking at it does not use it up."""
        about: dict[str, Any] = {"name": self.name, "kind": type(self.records).__name__}
        split = getattr(self.records, "split", None)
        if split is not None:
            about["split"] = str(split)
        if not isinstance(self.records, Iterator):
            found = next(iter(self.records), None)
            first = json.dumps(found, default=lambda value: type(value).__name__, skipkeys=True)
            about["sha256_first"] = hashlib.sha256(first.encode("utf-8", "surrogatepass")).hexdigest()
        return about

    def check(self, query: Query) -> None:
        """What is wrong with a document shows when it is read."""

    def read(self, place: Place, query: Query) -> Iterator[Step]:
        """Every document behind a place; those in front of it are skipped."""
        for record in self._behind(place.records):
            number = place.records + 1
            found = query.record(record, number)
            place = place._replace(records=number, line=number, usable=place.usable or not found.problem)
            told = found.problem or not query.prefilter or query.mentions.may_be_in(found.text)
            yield Step(found if told else None, place)

    def _behind(self, n: int) -> Iterator[Any]:
        if n and hasattr(self.records, "skip"):
            return iter(self.records.skip(n))
        rest = iter(self.records)
        for _ in range(n):
            next(rest, None)
        return rest
