"""A dissection as one page: no network, readable on a phone, in the dark, on paper and by a screen reader."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from krs._typing import DataFrame
from krs.extras import installed
from krs.instruments.instrument import instrument
from krs.instruments.pictures import Line, curves, evidence, heat
from krs.instruments.reading import Reading, mean
from krs.instruments.verdict import Verdict, thresholds
from krs.names import asked_by, told_apart
from krs.pages import Block, Code, Intervals, Lines, Listed, Map, Page, Picture, Section, Table, Text, document, peaks
from krs.wording import counted

_BETWEEN = "Each instrument between models that never knew and models that know, with a 95 % interval over facts."
_BETWEEN_TOLD = (
    "What each instrument reads, as a share of the way from models that never knew the facts, 0, to models that know "
    "them, 1: "
)
_EDGES = (-0.35, 1.35)
_ENDS = ("never knew", "knows")
Readings = Mapping[str, Reading]


def page(
    verdict: Verdict,
    readings: Readings,
    left_out: Mapping[str, str],
    answers: DataFrame,
    provenance: Mapping[str, Any],
) -> str:
    """One self-contained HTML file without any script: figures are drawn beforehand, where matplotlib is there."""
    return document(page_of(verdict, readings, left_out, answers, provenance, drawn=True), interactive=False)


def page_of(
    verdict: Verdict,
    readings: Readings,
    left_out: Mapping[str, str],
    answers: DataFrame,
    provenance: Mapping[str, Any],
    *,
    drawn: bool = False,
) -> Page:
    """The page as plain tables, of what a `Dissection` has; with `drawn` its figures are pictures, without script."""
    return Page(
        "Has it forgotten, or does it only not say?",
        (Text(_models(provenance, len(answers))), Text(str(verdict), "verdict"), Text(_plain(verdict))),
        tuple(_sections(verdict, readings, left_out, answers, provenance, drawn)),
        name=f"krs dissect: {verdict.word}",
    )


def _sections(
    verdict: Verdict,
    readings: Readings,
    left_out: Mapping[str, str],
    answers: DataFrame,
    provenance: Mapping[str, Any],
    drawn: bool,
) -> Iterator[Section]:
    """The evidence, what is behind it, answers, and where it all comes from."""
    yield Section("Evidence", (*_between(readings, drawn), _table(verdict, readings)))
    pictures = tuple(_curves(readings, drawn))
    if pictures:
        yield Section("Curves", pictures)
    yield Section("Answers", (Table("What each model says to each question", answers, 1, texts=True),))
    left = tuple(f"{name}: {why}" for name, why in left_out.items())
    missing = Listed(left) if left else Text("Everything was run.")
    yield Section("What was not run", (missing, *(Text(told) for told in _pace(provenance))))
    told = json.dumps(provenance, indent=1, default=str, ensure_ascii=False)
    origin = (
        Code("A command that makes one like it", _command(readings, provenance)),
        Code("Models, versions, settings", told),
    )
    yield Section("Where this comes from", origin)


def _pace(provenance: Mapping[str, Any]) -> Iterator[str]:
    """How the time of an instrument was judged, where some ran in that call."""
    pace = provenance.get("pace")
    if pace is not None:
        yield (
            f"Estimates come from one timed pass. What ran took {pace['measured_to_estimated']:.2g} times its estimate "
            f"(median of {counted(pace['instruments'], 'instrument')}), and what came later was judged by that."
        )


def _models(provenance: Mapping[str, Any], facts: int) -> str:
    models = provenance.get("models", {})
    named = told_apart(models).items()
    names = "; ".join(name if name == f"the {side} model" else f"{side}: {name}" for side, name in named)
    asked = counted(facts, "fact")
    return f"{names}. {asked} asked about, {provenance.get('time', '')}."


def _command(readings: Readings, provenance: Mapping[str, Any]) -> str:
    """As far as it is known how it was asked for; `facts.jsonl` stands for the facts."""
    import shlex

    names = {side: asked_by(model) or side.upper() for side, model in provenance.get("models", {}).items()}
    words = ["krs dissect", *(shlex.quote(names.get(side, side.upper())) for side in ("vanilla", "unlearned"))]
    words += ["--target facts.jsonl", *(f"--only {name}" for name in readings)]
    words += [f"--retain {shlex.quote(names['retain'])}"] if "retain" in names else []
    return " ".join([*words, "--budget none -o out/dissect"])


def _plain(verdict: Verdict) -> str:
    """What the word means, and what it is worth."""
    meant = {
        "knows": "The facts are still in the model: ways of asking that a model without them fails find them.",
        "partly": "Some of the facts are still in the model, or weakly.",
        "does not know": "The model reads like one that was never taught the facts.",
        "cannot tell": "The evidence does not carry a verdict.",
    }[verdict.word]
    base = "" if thresholds() else " No calibration is in this version, so nothing votes."
    return (
        f"{meant} Each instrument is read beside models whose answer is known in advance; its vote counts only if "
        f"those read as they should. The thresholds come from models of one kind and size, so other models may read "
        f"otherwise.{base}"
    )


def _between(readings: Readings, drawn: bool) -> Iterator[Block]:
    """Instruments with thresholds, each between its never-knew and its knows."""
    import pandas as pd

    lines = []
    for name, threshold in thresholds().items():
        if name in readings:
            reading = readings[name]
            low, high = reading.interval()
            span = threshold.knows - threshold.never
            place = [(v - threshold.never) / span for v in (reading.mean, low, high)]
            if not np.isnan(place).any():
                lines.append(Line(name, place[0], *sorted(np.clip(place[1:], *_EDGES))))
    if not lines:
        return
    told = _BETWEEN_TOLD + ", ".join(f"{line.name} {line.mean:z.2f}" for line in lines) + "."
    if any(not _EDGES[0] <= line.mean <= _EDGES[1] for line in lines):
        told += f" The figure ends at {_EDGES[0]} and {_EDGES[1]}."
    if not drawn:
        yield Intervals(_BETWEEN, told, pd.DataFrame([vars(line) for line in lines]), _ENDS)
    elif installed("matplotlib"):
        yield Picture(_BETWEEN, told, evidence(lines))


def _table(verdict: Verdict, readings: Readings) -> Table:
    import pandas as pd

    votes = {v.instrument: (f"none: {v.why}" if v.why else v.says) for v in verdict.votes}
    rows = []
    for name, reading in readings.items():
        low, high = reading.interval()
        notes = f" ({'; '.join(reading.notes)})" if reading.notes else ""
        rows.append(
            {
                "instrument": name,
                "asks": f"{_says(name)}{notes}",
                "reads": float(reading.mean),
                "low": float(low),
                "high": float(high),
                "in": f"{reading.unit}; {_direction(reading)}",
                "nulls read": "; ".join(f"{n} {_number(mean(v))}" for n, v in reading.nulls.items()),
                "vote": votes.get(name, ""),
            }
        )
    return Table("What each instrument reads, with a 95 % interval over facts", pd.DataFrame(rows))


def _direction(reading: Reading) -> str:
    return "it describes" if reading.knows is None else f"a model that knows reads {reading.knows}"


def _curves(readings: Readings, drawn: bool) -> Iterator[Block]:
    tables = [(name, what, t) for name, r in readings.items() for what, t in r.curves.items() if len(t)]
    if drawn and tables and not installed("matplotlib"):
        yield Text("The curves need matplotlib, which is not installed; their numbers are in the JSON.")
        return
    for name, what, table in tables:
        yield from _curve(name, what, table, drawn)


def _curve(name: str, what: str, table: DataFrame, drawn: bool) -> Iterator[Block]:
    """A picture of components by layers, a table of named things, or lines."""
    from pandas.api.types import is_numeric_dtype

    caption, across = f"{name}: {what}", str(table.columns.name or "layer")
    below = str(table.index.name or "window")
    frame = table.rename(columns=str).rename_axis(below).reset_index()
    if table.columns.name == "layer":
        rows = ", ".join(map(str, table.index))
        told = f"{name}, {what}: {rows} over {counted(len(table.columns), 'layer')}"
        caption = f"{caption}; -1 is outside the layers"
        yield Picture(caption, told, heat(table, what)) if drawn else Map(caption, told, table, across, "", what, 0.0)
        yield Table(f"{name}: {what}", frame, folded=True)
    elif not is_numeric_dtype(table.index):
        yield Table(caption, frame)
    else:
        lines = ", ".join(map(str, table.columns))
        told = f"{name}, {what}: {lines} over {len(table)} values of {table.index.name}"
        told_all = f"{told}. {peaks(table)}"
        shown = Lines(caption, told_all, table, x_label=below, y_label=what, whole=False)
        yield Picture(caption, told, curves(table, what)) if drawn else shown
        yield Table(caption, frame, folded=True)


def _says(name: str) -> str:
    """The first paragraph of an instrument's docstring, for those that are there."""
    from krs.errors import KrsError

    try:
        told = (instrument(name).__doc__ or "").split("\n\n")[0]
    except KrsError:
        return ""
    return " ".join(told.split())


def _number(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:z.3g}"
