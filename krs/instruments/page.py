"""A dissection as one page: no network, readable on a phone, in the dark, on paper and by a screen reader."""

from __future__ import annotations

import json
from html import escape

import numpy as np

from krs._typing import DataFrame
from krs.extras import installed
from krs.instruments.dissection import Dissection
from krs.instruments.instrument import instrument
from krs.instruments.pictures import Line, curves, evidence, heat
from krs.instruments.reading import Reading, mean
from krs.instruments.verdict import thresholds
from krs.wording import counted

_STYLE = """
:root { color-scheme: light dark; --ink: #1c1c1c; --paper: #fff; --line: #ccc; --soft: #f4f4f1 }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e8e4; --paper: #16181a; --line: #444; --soft: #22262a } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 0 auto; padding: 1rem;
  max-width: 60rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2rem }
.verdict { background: var(--soft); border-left: .4rem solid #0072b2; padding: .6rem 1rem; font-size: 1.15rem }
.scroll { overflow-x: auto } table { border-collapse: collapse; font-size: .9rem }
th, td { border-bottom: 1px solid var(--line); padding: .3rem .6rem; text-align: left; vertical-align: top }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
figure { margin: 1rem 0 } figure svg { max-width: 100%; height: auto; background: #fff; border-radius: .3rem }
figcaption { font-size: .9rem } details { margin: .5rem 0 } code, pre { font-size: .85rem; overflow-x: auto }
@media print { details { display: block } body { max-width: none } }
"""


def page(found: Dissection) -> str:
    """One self-contained HTML file. Whatever a model or a file has said is escaped."""
    parts = [
        "<h1>Has it forgotten, or does it only not say?</h1>",
        f"<p>{_models(found)}</p>",
        f'<p class="verdict" role="status"><strong>{escape(str(found.verdict))}</strong></p>',
        _plain(found),
        "<h2>Evidence</h2>",
        _between(found),
        _table(found),
        _curves(found),
        "<h2>Answers</h2>",
        _answers(found),
        "<h2>What was not run</h2>",
        _left_out(found),
        "<h2>Where this comes from</h2>",
        f"<details><summary>Models, versions, settings</summary><pre>{escape(_told(found.provenance))}</pre></details>",
    ]
    title = escape(f"krs dissect: {found.verdict.word}")
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_STYLE}</style></head>'
        f"<body><main>{''.join(parts)}</main></body></html>\n"
    )


def _models(found: Dissection) -> str:
    models = found.provenance.get("models", {})
    called = {s: told.get("given_as") or told.get("name_or_path") or "?" for s, told in models.items()}
    names = "; ".join(f"{side}: {name}" for side, name in called.items())
    asked = counted(len(found.facts), "fact")
    return escape(f"{names}. {asked} asked about, {found.provenance.get('time', '')}.")


def _plain(found: Dissection) -> str:
    """What the word means, and what it is worth."""
    meant = {
        "knows": "The facts are still in the model: ways of asking that a model without them fails find them.",
        "partly": "Some of the facts are still in the model, or weakly.",
        "does not know": "The model reads like one that was never taught the facts.",
        "cannot tell": "The evidence does not carry a verdict.",
    }[found.verdict.word]
    base = "" if thresholds() else " No calibration is in this version, so nothing votes."
    return (
        f"<p>{meant} Each instrument is read beside models whose answer is known in advance; its vote counts only if "
        f"those read as they should. The thresholds come from models of one kind and size, so other models may read "
        f"otherwise.{base}</p>"
    )


def _between(found: Dissection) -> str:
    """Instruments with thresholds, each between its never-knew and its knows."""
    lines = []
    for name, threshold in thresholds().items():
        if name in found.readings:
            reading = found.readings[name]
            low, high = reading.interval()
            span = threshold.knows - threshold.never
            place = [(v - threshold.never) / span for v in (reading.mean, low, high)]
            if not np.isnan(place).any():
                lines.append(Line(name, place[0], *sorted(np.clip(place[1:], -0.35, 1.35))))
    if not lines or not installed("matplotlib"):
        return ""
    told = "; ".join(f"{line.name} {line.mean:.2f}" for line in lines)
    caption = "Each instrument between models that never knew and models that know, with a 95 % interval over facts."
    return _figure(evidence(lines), caption, told)


def _table(found: Dissection) -> str:
    votes = {v.instrument: (f"none: {v.why}" if v.why else v.says) for v in found.verdict.votes}
    rows = []
    for name, reading in found.readings.items():
        low, high = reading.interval()
        nulls = "<br>".join(f"{escape(n)} {_number(mean(v))}" for n, v in reading.nulls.items())
        notes = f"<br><small>{escape('; '.join(reading.notes))}</small>" if reading.notes else ""
        rows.append(
            f'<tr><th scope="row">{escape(name)}</th><td>{escape(_says(name))}{notes}</td>'
            f'<td class="number">{_number(reading.mean)}<br><small>{_number(low)} … {_number(high)}</small></td>'
            f"<td>{escape(reading.unit)}; {_direction(reading)}</td><td>{nulls}</td>"
            f"<td>{escape(votes.get(name, ''))}</td></tr>"
        )
    head = "".join(f'<th scope="col">{h}</th>' for h in ("instrument", "asks", "reads", "in", "nulls read", "vote"))
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _direction(reading: Reading) -> str:
    return "it describes" if reading.knows is None else f"a model that knows reads {reading.knows}"


def _curves(found: Dissection) -> str:
    if not installed("matplotlib"):
        return "<p>The curves need matplotlib, which is not installed; their numbers are in the JSON.</p>"
    tables = [(name, what, t) for name, r in found.readings.items() for what, t in r.curves.items() if len(t)]
    return f"<h2>Curves</h2>{''.join(_curve(*one) for one in tables)}" if tables else ""


def _curve(name: str, what: str, table: DataFrame) -> str:
    """A picture of components by layers, a table of named things, or lines."""
    from pandas.api.types import is_numeric_dtype

    if table.columns.name == "layer":
        rows = ", ".join(map(str, table.index))
        told = f"{name}, {what}: {rows} over {counted(len(table.columns), 'layer')}"
        return _figure(heat(table, what), f"{name}: {what}; -1 is outside the layers", told)
    if not is_numeric_dtype(table.index):
        shown = table.to_html(float_format=_number, border=0, na_rep="-")
        return f'<figure><div class="scroll">{shown}</div><figcaption>{escape(f"{name}: {what}")}</figcaption></figure>'
    lines = ", ".join(map(str, table.columns))
    told = f"{name}, {what}: {lines} over {len(table)} values of {table.index.name}"
    return _figure(curves(table, what), f"{name}: {what}", told)


def _answers(found: Dissection) -> str:
    table = found.answers
    head = "".join(f'<th scope="col">{escape(str(c))}</th>' for c in table.columns)
    rows = "".join("<tr>" + "".join(f"<td>{escape(str(v))}</td>" for v in row) + "</tr>" for row in table.to_numpy())
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _left_out(found: Dissection) -> str:
    if not found.left_out:
        return "<p>Everything was run.</p>"
    return "<ul>" + "".join(f"<li>{escape(n)}: {escape(why)}</li>" for n, why in found.left_out.items()) + "</ul>"


def _says(name: str) -> str:
    """The first paragraph of an instrument's docstring, for those that are there."""
    from krs.errors import KrsError

    try:
        told = (instrument(name).__doc__ or "").split("\n\n")[0]
    except KrsError:
        return ""
    return " ".join(told.split())


def _figure(svg: str, caption: str, told: str) -> str:
    picture = svg.replace("<svg", f'<svg role="img" aria-label="{escape(told, quote=True)}"', 1)
    return f"<figure>{picture}<figcaption>{escape(caption)}</figcaption></figure>"


def _number(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.3g}"


def _told(provenance: object) -> str:
    return json.dumps(provenance, indent=1, default=str, ensure_ascii=False)
