"""Concept files as JSON: the objects in them, and their fields with checked types."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from krs.errors import KrsError

_SUFFIXES = (".json", ".jsonl")
_KINDS = {str: "a string", list: "a list", dict: "an object", bool: "true or false", type(None): "null"}


@dataclass(frozen=True)
class Entry:
    """One object of a file. What it is asked for has the right type, or a `KrsError` says where it has not.

    Texts come without the white space at their ends.

    >>> Entry({"name": "Emma", "questions": "Who wrote it?"}, "emma.json, concept 'Emma'").texts("questions")
    Traceback (most recent call last):
        ...
    krs.errors.KrsError: emma.json, concept 'Emma': 'questions' is a string: make it a list of strings

    Attributes:
        fields: as the file has them.
        where: file and concept, for messages.
    """

    fields: dict[str, Any]
    where: str

    def error(self, problem: str) -> KrsError:
        """What is wrong and what to do, behind file and concept."""
        return KrsError(f"{self.where}: {problem}")

    def require(self, field: str, kind: str) -> None:
        """Raise `KrsError` for a field that is not there."""
        if field not in self.fields:
            raise self.error(f"there is no {field!r}: add it, {kind}")

    def allow(self, names: Sequence[str]) -> None:
        """Raise `KrsError` for a field that is not among `names`, with the nearest of them."""
        for field in self.fields:
            if field not in names:
                near = difflib.get_close_matches(field, names, 1)
                remedy = f"did you mean {near[0]!r}?" if near else f"remove it; the fields are {', '.join(names)}"
                raise self.error(f"{field!r} is no field of a concept: {remedy}")

    def text(self, field: str) -> str:
        """A string; an empty one when the field is not there."""
        return self._string(self.fields.get(field, ""), repr(field), empty=field not in self.fields)

    def texts(self, field: str, distinct: bool = False) -> tuple[str, ...]:
        """A list of strings, none of them empty; an empty list when the field is not there."""
        found = tuple(self._string(v, f"{field!r} item {i}") for i, v in self._items(field, "strings"))
        if distinct and len(set(found)) < len(found):
            twice = next(text for text in found if found.count(text) > 1)
            raise self.error(f"{field!r} has {twice!r} twice: remove one")
        return found

    def number(self, *names: str) -> int | None:
        """A whole number, not negative: of the first of these fields that is there."""
        for field in names:
            if field in self.fields:
                return self._whole(self.fields[field], repr(field))
        return None

    def numbers(self, field: str) -> tuple[int, ...]:
        """A list of whole numbers, none negative; an empty list when the field is not there."""
        return tuple(self._whole(v, f"{field!r} item {i}") for i, v in self._items(field, "whole numbers"))

    def pairs(self, field: str, keys: tuple[str, str] | None = None) -> tuple[tuple[str, str], ...]:
        """A list of pairs of strings: lists of two, or objects with these two keys."""
        kind = "lists of two strings" if keys is None else f"objects with {keys[0]!r} and {keys[1]!r}"
        found = []
        for i, value in self._items(field, kind):
            named = keys is not None and isinstance(value, dict)
            halves = [value[k] for k in keys or () if k in value] if named else value
            if not isinstance(halves, list) or len(halves) != 2:
                raise self.error(f"{field!r} item {i} is no pair: make {field!r} a list of {kind}")
            first, second = (self._string(half, f"{field!r} item {i}") for half in halves)
            found.append((first, second))
        return tuple(found)

    def match(self, field: str, count: int, other: str) -> None:
        """Raise `KrsError` unless the list in `field` is as long as `other`, or there is none."""
        found = len(self.fields.get(field, ()))
        if found not in (0, count):
            raise self.error(f"{field!r} has {found} items for {count} in {other!r}: give one for each, or none")

    def _items(self, field: str, kind: str) -> Iterator[tuple[int, Any]]:
        value = self.fields.get(field, [])
        if not isinstance(value, list):
            raise self.error(f"{field!r} is {_kind(value)}: make it a list of {kind}")
        return enumerate(value, 1)

    def _string(self, value: Any, what: str, empty: bool = False) -> str:
        if not isinstance(value, str):
            raise self.error(f"{what} is {_kind(value)}: make it a string")
        if not value.strip() and not empty:
            raise self.error(f"{what} is empty: remove it or give it a text")
        return value.strip()

    def _whole(self, value: Any, what: str) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise self.error(f"{what} is {value!r}: make it a whole number from 0 up, or leave it out")
        return value


def read_entries(path: Path, name_fields: Sequence[str]) -> list[Entry]:
    """The objects of a `.json` file (one, or a list of them) or of a `.jsonl` file (one a line).

    Args:
        path: the file.
        name_fields: in which field an object may have its name, for messages.
    """
    if path.suffix.lower() not in _SUFFIXES:
        raise KrsError(f"{path} is no concept file: its name has to end in {' or '.join(_SUFFIXES)}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise KrsError(f"{path} is not UTF-8 text: save it as UTF-8") from None
    listed = _lines(text, path) if path.suffix.lower() == ".jsonl" else _objects(text, path)
    if not listed:
        raise KrsError(f"{path} is empty: write at least one concept into it, an object with 'name' and 'questions'")
    return [_entry(value, f"{path}, {place}", name_fields) for place, value in listed]


def _objects(text: str, path: Path) -> list[tuple[str, Any]]:
    if not text.strip():
        return []
    value = _parsed(text, path)
    if not isinstance(value, list | dict):
        raise KrsError(f"{path} holds {_kind(value)}: make it an object, or a list of objects, one a concept")
    return _numbered(value) if isinstance(value, list) else [("the concept", value)]


def _numbered(values: list[Any]) -> list[tuple[str, Any]]:
    return [(f"concept {i}", value) for i, value in enumerate(values, 1)]


def _lines(text: str, path: Path) -> list[tuple[str, Any]]:
    """The objects with their line numbers; lines end at newlines only, as U+2028 may stand within a JSON string."""
    lines = enumerate(text.split("\n"), 1)
    return [(f"line {i}", _parsed(line, path, i - 1)) for i, line in lines if line.strip()]


def _parsed(text: str, path: Path, lines_before: int = 0) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        remedy = "mend it there"
        if error.msg == "Extra data" and path.suffix.lower() == ".json":
            remedy = "put several objects into a list, or name the file .jsonl if it has one a line"
        line = error.lineno + lines_before
        raise KrsError(f"{path} is not valid JSON, line {line}, column {error.colno} ({error.msg}): {remedy}") from None


def _entry(value: Any, where: str, name_fields: Sequence[str]) -> Entry:
    if not isinstance(value, dict):
        raise KrsError(f"{where} is {_kind(value)}: make it an object with 'name' and 'questions'")
    names = [value[field] for field in name_fields if isinstance(value.get(field), str)]
    return Entry(value, f"{where} ({names[0]!r})" if names else where)


def _kind(value: Any) -> str:
    return _KINDS.get(type(value), "a number")
