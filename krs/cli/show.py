"""`krs show`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from krs import saved
from krs.cli.shell import app
from krs.wording import wrapped


@app.command()
def show(
    file: Annotated[list[Path], typer.Argument(help="sweep.krs, answers.json … or a directory that krs wrote")],
) -> None:
    """Say what saved results hold, in words: sweeps and means, accounts, answers, dissections, drifts, reports."""
    results = saved.found(file)

    from krs.cli.words import words

    for i, one in enumerate(results):
        print(f"{chr(10) if i else ''}{one.path}")
        for line in words(one.read(), one.kind):
            print("\n".join(wrapped(line)))
