"""A page as one HTML file that loads nothing: style, script, drawing library and data are all in it."""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from itertools import groupby
from typing import Any

from krs.extras import require
from krs.pages import blocks
from krs.pages.figures import Figures
from krs.pages.looks import COLOURS, DASHES, MARKS, SYMBOLS
from krs.pages.text import embedded, html
from krs.pages.values import (
    Average,
    Block,
    Code,
    Intervals,
    Lines,
    Listed,
    Map,
    Page,
    Picture,
    Points,
    Section,
    Table,
    Text,
)

_FIGURES = (Average, Intervals, Lines, Map, Points)
_NO_SCRIPT = "The figures and buttons need JavaScript; every number is in the tables."


def document(page: Page, interactive: bool = True) -> str:
    """One self-contained HTML file. Whatever a model or a file has said is text on it, never HTML.

    Args:
        page: what is on it.
        interactive: with a script, which draws figures, copies tables, and switches things on and off; needs the
            extra `krs[report]`. Without, the page has no script at all, and must have no figures but `Picture`.

    Raises `KrsError` where the extra is missing.
    """
    if interactive:
        require("vl_convert", "report", "a page with figures that answer")
    writer = _Writer(page, interactive)
    body = writer.body()
    scripts = _scripts(page, writer.figures) if interactive else []
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    if scripts:
        policy += f"; script-src 'unsafe-eval' {' '.join(_digest(script) for script in scripts[1:])}"
    head = (
        f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{policy}">'
        f"<title>{html(page.name or page.title)}</title>"
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{_style()}</style>'
    )
    data = f'<script type="application/json" id="data">{scripts[0]}</script>' if scripts else ""
    run = "".join(f"<script>{script}</script>" for script in scripts[1:])
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{body}{data}{run}</body></html>\n'


class _Writer:
    """Writes the body; takes figures down as it comes to them."""

    def __init__(self, page: Page, interactive: bool) -> None:
        self.page = page
        self.interactive = interactive
        self.figures = Figures(page.switches)
        self.n_sections = 0

    def body(self) -> str:
        page = self.page
        sections = "".join(self._section(section, 2) for section in page.sections)
        switches = blocks.switches(page.switches) if self.interactive else ""
        samples = f'<svg class="samples" aria-hidden="true">{SYMBOLS}</svg>' if self.interactive else ""
        script = f"<noscript><p>{_NO_SCRIPT}</p></noscript>" if self.interactive else ""
        return (
            f"{samples}<main><h1>{html(page.title)}</h1>{''.join(self._blocks(page.lead))}{script}"
            f"{self._contents()}{switches}{sections}</main>"
        )

    def _contents(self) -> str:
        if len(self.page.sections) < 4:
            return ""
        links = "".join(f'<li><a href="#{_anchor(s.title)}">{html(s.title)}</a>' for s in self.page.sections)
        return f'<nav aria-label="Contents"><ul>{links}</ul></nav>'

    def _section(self, section: Section, level: int) -> str:
        self.n_sections += 1
        marks = self.figures.marks.of(section.keys)
        anchor = f' id="{_anchor(section.title)}"' if level == 2 else ""
        inner = "".join([*self._blocks(section.blocks), *(self._section(s, level + 1) for s in section.sections)])
        return f"<section{marks}{anchor}><h{level}>{html(section.title)}</h{level}>{inner}</section>"

    def _blocks(self, found: tuple[Block, ...]) -> Iterator[str]:
        """Blocks in order; figures that follow each other share a grid, and a legend where it is the same."""
        run: Any
        for are_figures, run in groupby(found, lambda block: isinstance(block, _FIGURES)):
            if not are_figures:
                yield from map(self._block, run)
                continue
            for (names, legend), several in groupby(run, self.figures.legend):
                shown = [self.figures.add(one) for one in several]
                kind = "panels" if len(shown) > 1 else "panel"
                yield f'{legend if names else ""}<div class="{kind}">{"".join(shown)}</div>'

    def _block(self, block: Any) -> str:
        if isinstance(block, Table):
            return blocks.table(block, self.figures.marks, self.interactive)
        made: dict[type, Any] = {
            Text: blocks.text,
            Listed: blocks.listed,
            Code: blocks.code,
            Picture: blocks.picture,
        }
        return str(made[type(block)](block))


def _anchor(title: str) -> str:
    return "s-" + "".join(c if c.isascii() and c.isalnum() else "-" for c in title.lower())


def _scripts(page: Page, figures: Figures) -> list[str]:
    """The data, then what runs: the drawing library and the page's own script."""
    switches = [{"axis": s.axis, "label": s.label, "values": list(s.values)} for s in page.switches]
    looks = {"colours": COLOURS, "dashes": DASHES, "marks": MARKS}
    data = embedded({"switches": switches, "figures": figures.data, "looks": looks})
    library = [f"(()=>{{{_library()}}})();"] if figures.data else []
    return [data, *library, _resource("page.js")]


@cache
def _library() -> str:
    """Vega and Vega-Lite (BSD-3-Clause) as the extra has them."""
    import vl_convert

    return (
        str(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;"))
        .replace("</script", r"<\/script")
        .replace("<!--", r"<\!--")
    )


def _style() -> str:
    return _resource("page.css")


@cache
def _resource(name: str) -> str:
    return files("krs.pages").joinpath(name).read_text(encoding="utf-8")


def _digest(script: str) -> str:
    """By which the browser knows a script that may run: no other does, wherever it might have come from."""
    return f"'sha256-{b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
