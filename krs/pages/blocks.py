"""Blocks as HTML."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from krs.pages.text import html, number
from krs.pages.values import Code, Keys, Listed, Picture, Switch, Table, Text

_TEXTS = {"plain": "<p>{}</p>", "note": '<p class="note">{}</p>'}
_BUTTONS = (("csv", "CSV"), ("latex", "LaTeX"))


class Marks:
    """Marks elements with what they belong to, by the number of a value, so that a script can hide them."""

    def __init__(self, switches: tuple[Switch, ...]) -> None:
        self.places = {s.axis: {value: i for i, value in enumerate(s.values)} for s in switches}

    def of(self, keys: Keys) -> str:
        """Attributes of an element; nothing for what no switch knows."""
        found = {axis: self.places.get(axis, {}).get(value) for axis, value in keys.items()}
        return "".join(f' data-{axis}="{i}"' for axis, i in found.items() if i is not None)


def text(block: Text) -> str:
    """A paragraph."""
    if block.kind == "verdict":
        return f'<p class="verdict" role="status"><strong>{html(block.text)}</strong></p>'
    return _TEXTS[block.kind].format(html(block.text))


def listed(block: Listed) -> str:
    """A list."""
    return f"<ul>{''.join(f'<li>{html(item)}</li>' for item in block.items)}</ul>"


def code(block: Code) -> str:
    """Text as it is."""
    opened = " open" if block.unfolded else ""
    region = f'tabindex="0" role="region" aria-label="{html(block.title)}"'
    return (
        f"<details{opened}><summary>{html(block.title)}</summary>"
        f'<pre class="scroll" {region}>{html(block.text)}</pre></details>'
    )


def picture(block: Picture) -> str:
    """A picture with what it shows in words."""
    svg = block.svg.replace("<svg", f'<svg role="img" aria-label="{html(block.told)}"', 1)
    return f"<figure>{svg}<figcaption>{html(block.caption)}</figcaption></figure>"


def table(block: Table, marks: Marks, buttons: bool) -> str:
    """A table with a caption, a head for each column and row, and buttons that copy it."""
    frame = block.frame
    columns = [str(c) for c in frame.columns]
    of_column = [marks.of({block.axis: name}) if block.axis else "" for name in columns]
    head = "".join(f'<th scope="col"{m}>{html(name)}' for name, m in zip(columns, of_column, strict=True))
    write = _row(block, columns, marks)
    body = "".join(write(row) for row in frame.itertuples(index=False, name=None))
    tools = _tools(block.caption) if buttons else ""
    kind = ' class="texts"' if block.texts else ""
    kind += f' data-about="{html(block.about)}"' if block.about else ""
    whole = (
        f'{tools}<div class="scroll" tabindex="0" role="region" aria-label="{html(block.caption)}"><table{kind}>'
        f"<caption>{html(block.caption)}</caption><thead><tr>{head}</thead><tbody>{body}</tbody></table></div>"
    )
    whose = marks.of(block.belongs)
    if block.folded:
        return f'<details class="table"{whose}><summary>{html(block.caption)}</summary>{whole}</details>'
    return f'<div class="table"{whose}>{whole}</div>'


def _tools(caption: str) -> str:
    made = (
        f'<button type="button" data-copy="{kind}" aria-label="{html(f"Copy as {name}: {caption}")}">Copy {name}'
        for kind, name in _BUTTONS
    )
    return f'<div class="tools">{"".join(f"{one}</button>" for one in made)}</div>'


def _row(block: Table, columns: list[str], marks: Marks) -> Callable[[tuple[Any, ...]], str]:
    """A function from a row's cells to its HTML. End tags are left out where HTML has no need of them."""
    places = {axis: columns.index(name) for axis, name in block.keys.items()}
    label = [f' data-head="{html(name)}"' if block.texts else "" for name in columns]
    words = ' class="t" dir="auto"' if block.texts else ' class="t"'

    def write(row: tuple[Any, ...]) -> str:
        cells = []
        for i, value in enumerate(row):
            shown = html(number(value, block.digits))
            if i < block.heads:
                cells.append(f'<th scope="row"{label[i]}>{shown}')
            else:
                kind = words if isinstance(value, str) else ""
                cells.append(f"<td{kind}{label[i]}>{shown}")
        return f"<tr{marks.of({axis: str(row[i]) for axis, i in places.items()})}>{''.join(cells)}"

    return write


def switches(found: tuple[Switch, ...]) -> str:
    """A group of boxes to tick for each switch."""
    shown = [s for s in found if len(s.values) > 1]
    if not shown:
        return ""
    groups = "".join(_group(s) for s in shown)
    told = '<p role="status" id="shown"></p>'
    return f'<details class="switches" open><summary>What is shown</summary>{groups}{told}</details>'


def _group(switch: Switch) -> str:
    boxes = "".join(
        f'<label><input type="checkbox" checked data-switch="{html(switch.axis)}" value="{i}">'
        f"{sample(i) if switch.lines else ''}{html(value)}</label>"
        for i, value in enumerate(switch.values)
    )
    both = "".join(
        f'<button type="button" data-all="{html(switch.axis)}" value="{on}" '
        f'aria-label="{html(f"{switch.label}: {word}")}">{word}</button>'
        for on, word in ((1, "all"), (0, "none"))
    )
    return f"<fieldset><legend>{html(switch.label)}</legend>{boxes}{both}</fieldset>"


def sample(i: int) -> str:
    """What the `i`-th kind of line looks like."""
    from krs.pages.looks import look

    return f'<svg class="key" viewBox="0 0 34 12" aria-hidden="true"><use href="#k{look(i)}"/></svg>'


def legend(names: Mapping[str, int], marks: str = "") -> str:
    """Names beside what their lines look like."""
    items = "".join(f"<li>{sample(i)}{html(name)}</li>" for name, i in names.items())
    return f'<ul class="legend"{marks}>{items}</ul>'
