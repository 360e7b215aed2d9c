"""Readings on the disk: what an interrupted dissection has done is not done again."""

from __future__ import annotations

import json
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from krs.instruments.case import Asked, Case
from krs.instruments.instrument import Instrument
from krs.instruments.reading import Reading
from krs.models.identity import combined, identity
from krs.models.provenance import NUMBERS, versions, versions_that_count
from krs.writing import write_text


def subject_of(case: Case) -> dict[str, Any]:
    """Everything but the instrument that a reading follows from: every byte of the models, the facts, the seed."""
    models = {"vanilla": case.vanilla, "unlearned": case.unlearned, "retain": case.retain}
    return {
        "models": {side: None if model is None else identity(model) for side, model in models.items()},
        "target": _told(case.target),
        "unrelated": None if case.unrelated is None else _told(case.unrelated),
        "seed": case.seed,
        "versions": versions_that_count(versions()) | {"krs's way to its numbers": NUMBERS},
    }


class Kept:
    """Readings of one case in a folder. Without a folder nothing is kept."""

    def __init__(self, folder: Path | None, subject: dict[str, Any]) -> None:
        self.folder = folder
        self.subject = subject

    def find(self, instrument: Instrument, nulls: bool) -> Reading | None:
        """A reading of this case that is there already; one of other models or facts, or a damaged one, is not."""
        place = self._place(instrument)
        if place is None or not place.is_file():
            return None
        try:
            told = json.loads(place.read_text(encoding="utf-8"))
            return Reading.from_json(told["reading"]) if told["key"] == self._key(instrument, nulls) else None
        except (ValueError, KeyError, TypeError, UnicodeDecodeError):
            return None

    def add(self, instrument: Instrument, nulls: bool, reading: Reading) -> None:
        """Write a reading in one step."""
        if (place := self._place(instrument)) is not None:
            told = {"key": self._key(instrument, nulls), "reading": reading.as_json()}
            write_text(place, json.dumps(told, ensure_ascii=False, indent=1))

    def _place(self, instrument: Instrument) -> Path | None:
        return None if self.folder is None else self.folder / "readings" / f"{instrument.name}.json"

    def _key(self, instrument: Instrument, nulls: bool) -> str:
        settings: dict[str, Any] = asdict(instrument) if is_dataclass(instrument) else vars(instrument)
        settings = json.loads(json.dumps(settings, default=repr))
        under = list(instrument.nulls) if nulls else []
        subject = self.subject
        if not instrument.follows_retain(nulls):
            subject = subject | {"models": subject["models"] | {"retain": None}}
        return combined(subject, [instrument.name, instrument.version, settings, under])


def _told(asked: Asked) -> list[Any]:
    return [list(map(list, asked.batch.tokens)), list(map(list, asked.batch.targets)), [vars(f) for f in asked.facts]]
