"""Documents as rows of Parquet files, a part of a row group at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from krs.data.documents import Place, Query, Record, Step, file_identity, listed
from krs.errors import KrsError
from krs.extras import missing

_ROWS = 1024
_BUFFER = 4 * 1024 * 1024


@dataclass(frozen=True)
class ParquetFile:
    """A Parquet file of which two columns are read."""

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
        """Raise `KrsError` unless this is a Parquet file with a column of texts."""
        pa = _pyarrow()
        with self._opened() as file:
            schema = file.schema_arrow
        if query.text_field not in schema.names:
            there = listed(schema.names)
            raise KrsError(f"{str(self.path)!r} has no field {query.text_field!r}, {there}: name one with text_field=")
        kind = schema.field(query.text_field).type
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            raise KrsError(
                f"{query.text_field!r} of {str(self.path)!r} is {kind}, not text: name another field with text_field="
            )

    def read(self, place: Place, query: Query) -> Iterator[Step]:
        """Rows behind a place that may mention the concept or are malformed; all of them without prefilter."""
        pa = _pyarrow()
        with self._opened() as file:
            columns = [n for n in dict.fromkeys((query.text_field, query.id_field)) if n in file.schema_arrow.names]
            rows, first, size = file.metadata.num_rows, 0, self.size
            for group in range(file.num_row_groups):
                last = first + file.metadata.row_group(group).num_rows
                try:
                    for batch in file.iter_batches(_ROWS, [group], columns) if place.records < last else ():
                        fresh = batch.slice(max(0, place.records - first))
                        for step in _steps(fresh, place, query):
                            place = step.place._replace(disk=size * step.place.records // rows)
                            yield step._replace(place=place)
                        first += batch.num_rows
                except (OSError, pa.ArrowException) as reason:
                    left, number = last - place.records, place.records + 1
                    place = place._replace(records=last, line=last, disk=size * last // rows)
                    problem = f"cannot be read, nor the rows behind it in row group {group}, {left} in all ({reason})"
                    yield Step(Record(number, problem=problem, many=left), place)
                first = last

    def _opened(self) -> Any:
        pa, parquet = _pyarrow(), _pyarrow("pyarrow.parquet")
        try:
            return parquet.ParquetFile(
                self.path, buffer_size=_BUFFER, pre_buffer=False, page_checksum_verification=True
            )
        except (OSError, pa.ArrowException) as reason:
            raise KrsError(f"{str(self.path)!r} cannot be read as Parquet ({reason}): leave it out") from None


def _steps(batch: Any, place: Place, query: Query) -> Iterator[Step]:
    """The rows of a batch that begins behind `place`."""
    texts = batch.column(query.text_field)
    if hasattr(texts, "dictionary_decode"):
        texts = texts.dictionary_decode()
    ids = batch.column(query.id_field) if query.id_field in batch.schema.names else None
    usable = place.usable
    good = _are_good(texts)
    for index in map(int, np.flatnonzero(~good | _may_mention(texts, good, query))):
        usable = usable or bool(good[: index + 1].any())
        number = place.records + index + 1
        if good[index]:
            fields = {query.text_field: texts[index].as_py()}
            if ids is not None:
                fields[query.id_field] = ids[index].as_py()
            record = query.record(fields, number)
        else:
            missing = not texts[index].is_valid
            record = Record(number, problem=f"its {query.text_field!r} is {'missing' if missing else 'not UTF-8'}")
        yield Step(record, place._replace(records=number, line=number, usable=usable))
    done = place.records + len(texts)
    yield Step(None, place._replace(records=done, line=done, usable=usable or bool(good.any())))


def _are_good(texts: Any) -> Bool[np.ndarray, " rows"]:
    """Which rows hold a text, and one in UTF-8."""
    good = np.array(texts.is_valid())
    try:
        texts.validate(full=True)
    except ValueError:
        for index in np.flatnonzero(good):
            try:
                texts[index].as_py()
            except UnicodeDecodeError:
                good[index] = False
    return good


def _may_mention(texts: Any, good: Bool[np.ndarray, " rows"], query: Query) -> Bool[np.ndarray, " rows"]:
    """Which rows have a piece of a name in them, in upper or lower case."""
    compute = _pyarrow("pyarrow.compute")
    anchors = query.mentions.anchors
    not_utf8 = len(good) - int(good.sum()) > texts.null_count
    if not query.prefilter or not anchors or not_utf8:
        return np.ones(len(texts), bool)
    found = [compute.match_substring(texts, anchor, ignore_case=True).fill_null(False) for anchor in anchors]
    return np.logical_or.reduce([np.asarray(here) for here in found])


def _pyarrow(module: str = "pyarrow") -> Any:
    try:
        return import_module(module)
    except ImportError:
        raise KrsError(missing("pyarrow", "data", "reading Parquet")) from None
