"""`krs study`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from krs.cli.options import Quiet
from krs.cli.outcome import interruptible
from krs.cli.shell import app
from krs.errors import KrsError

_FAILED = 1


@app.command()
def study(
    what: Annotated[
        str, typer.Argument(metavar="SPEC.yaml | status | show | export", help="a spec to run, or what to look at")
    ],
    folder: Annotated[
        Path | None, typer.Argument(metavar="[DIR]", help="of status, show and export: the study")
    ] = None,
    cell: Annotated[str | None, typer.Argument(metavar="[CELL]", help="of show: the cell")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="directory to write to")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="list cells, memory and time, and do nothing")] = False,
    runner: Annotated[str, typer.Option(help="who carries out the cells: local, or ray")] = "local",
    address: Annotated[
        str | None, typer.Option(help="of a Ray cluster, such as auto; else Ray is started here")
    ] = None,
    cpus: Annotated[int | None, typer.Option(help="with --runner ray: threads a cell")] = None,
    gpus: Annotated[float | None, typer.Option(help="with --runner ray: GPUs a cell, such as 0.25")] = None,
    with_texts: Annotated[bool, typer.Option("--with-texts", help="of export: the questions too")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="of export: replace a file that is there")] = False,
    quiet: Quiet = False,
) -> None:
    """Run a grid of models, concepts, methods, strengths and seeds, or what is left of it.

    `krs study SPEC.yaml -o DIR` runs it (`krs study run SPEC.yaml -o DIR` too), `krs study status DIR` lists its cells,
    `krs study show DIR CELL` says all about one, `krs study export DIR -o FILE.json` writes all tables into one file,
    without the questions unless `--with-texts`. Ends with 1 where a cell has failed.
    """
    if what == "run" and folder is not None:
        what, folder = str(folder), None
    if what in ("status", "show"):
        _look(what, folder, cell)
        return
    if what == "export":
        _export(folder, output, with_texts, overwrite)
        return
    if folder is not None or output is None:
        raise KrsError("give a spec and a directory: krs study SPEC.yaml -o DIR")
    from krs import study as studies
    from krs.study.run import listed
    from krs.study.store import Store

    if dry_run:
        for line in listed(studies.read_spec(what), Store(output.resolve())):
            print(line)
        return
    asked = {"--address": address, "--cpus": cpus, "--gpus": gpus}
    if runner != "ray" and (given := [name for name, value in asked.items() if value is not None]):
        raise KrsError(f"{given[0]} is for --runner ray: add that, or leave it out")
    who = studies.Ray(address, cpus, gpus) if runner == "ray" else runner
    with interruptible():
        found = studies.run(what, output, who, progress=not quiet)
    print(found)
    if found.written:
        print(f"written to {output}/results/: {', '.join(found.written)}")
    if found.failed:
        print(f"failed: {', '.join(outcome.cell for outcome in found.failed)} (krs study show {output} CELL says why)")
        raise typer.Exit(_FAILED)


def _export(folder: Path | None, output: Path | None, texts: bool, overwrite: bool) -> None:
    from krs import study as studies

    if folder is None or output is None:
        raise KrsError("krs study export takes a study's directory and a file: krs study export DIR -o results.json")
    place = studies.export(folder, output, texts=texts, overwrite=overwrite)
    print(f"written: {place} ({place.stat().st_size / 1e6:.2f} MB)")


def _look(what: str, folder: Path | None, cell: str | None) -> None:
    from krs import study as studies  # noqa: F401 - says what is missing, where it is
    from krs.study.run import show, status

    if folder is None or (cell is None) != (what == "status"):
        raise KrsError("krs study status takes a directory, krs study show a directory and a cell")
    if cell is not None:
        print(show(folder, cell))
        return
    for line in status(folder):
        print(line)
