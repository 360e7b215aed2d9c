"""`krs report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from krs.cli.shell import app


@app.command()
def report(
    path: Annotated[Path, typer.Argument(help="a study's directory, sweep.krs, report.json … or what a command wrote")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="the page; report.html in the directory, or FILE.html")
    ] = None,
    texts: Annotated[
        list[str] | None, typer.Option(help="concepts whose questions go back into an exported study (repeatable)")
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="replace a page that is there")] = False,
) -> None:
    """Write one page about a study, a sweep or a dissection: figures that answer, tables to copy, answers, provenance.

    The page is one file that loads nothing from anywhere. Needs pip install 'krs[report]'.
    """
    from krs.reports import report as write

    place = write(path, output, texts=texts or (), overwrite=overwrite)
    print(f"written: {place} ({place.stat().st_size / 1e6:.1f} MB)")
