"""`krs calibrate`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from krs.cli.options import Device, Dtype, Quiet
from krs.cli.outcome import interruptible
from krs.cli.shell import app, check_at_hand, check_names
from krs.errors import KrsError
from krs.extras import installed
from krs.wording import as_text
from krs.writing import check_folder, write_text

THRESHOLDS, TABLE, VERDICTS, PICTURE = "thresholds.json", "calibration.csv", "verdicts.csv", "calibration.png"


@app.command()
def calibrate(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="where models and readings go")],
    base: Annotated[str, typer.Option(help="the chat model that all others are made from")] = "smollm2",
    models: Annotated[list[str] | None, typer.Option(help="a model to make and read, all if not given")] = None,
    only: Annotated[list[str] | None, typer.Option(help="an instrument to read, all if not given")] = None,
    make_only: Annotated[bool, typer.Option("--make-only", help="make the models, and read nothing")] = False,
    check: Annotated[bool, typer.Option("--check", help="verdicts on models that set no threshold")] = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
    quiet: Quiet = False,
) -> None:
    """Put the instruments to the test on models whose truth is known; writes thresholds.json and calibration.csv.

    With `--check`, after that, verdicts by these thresholds on models of other facts (verdicts.csv). Interrupted, the
    same command goes on. Hours on two cores, and a checkpoint of the base's size for each of some thirty models.
    """
    check_names(base)
    thresholds = folder / THRESHOLDS
    if check and not make_only and not thresholds.is_file():
        raise KrsError(f"there are no thresholds in {str(folder)!r}: run krs calibrate {folder} first, without --check")
    check_folder(folder, [VERDICTS] if check else [THRESHOLDS, TABLE], "DIR")
    check_at_hand(base)

    from krs.instruments.instrument import instrument

    tools = None if not only else [instrument(name) for name in only]
    with interruptible(), _kept(folder):
        _make(folder, base, check, models, device, dtype, quiet)
        if make_only:
            return
        if check:
            _check(folder, thresholds, quiet)
        else:
            _read(folder, tools, models, quiet)


@contextmanager
def _kept(folder: Path) -> Iterator[None]:
    """Say of an interruption what it leaves."""
    try:
        yield
    except KeyboardInterrupt as stop:
        stop.add_note(f"finished models and readings are in {str(folder)!r}; the same call goes on from there")
        raise


def _make(folder: Path, base: str, check: bool, models: list[str] | None, device: str, dtype: str, quiet: bool) -> None:
    """The models, with those that all are compared with."""
    from krs.instruments import truth

    world = truth.VERDICT if check else truth.CALIBRATION
    wanted = None if not models else [*dict.fromkeys(["full", "retain", *models])]
    print(truth.make(folder, base, world=world, models=wanted, device=device, dtype=dtype, progress=not quiet))


def _read(folder: Path, tools: list[Any] | None, models: list[str] | None, quiet: bool) -> None:
    from krs.instruments.calibration import calibrate as read

    found = read(folder, only=tools, models=models or None, progress=not quiet)
    found.save(folder / THRESHOLDS)
    write_text(folder / TABLE, found.table().to_csv())
    names = [THRESHOLDS, TABLE]
    if installed("matplotlib") and len(told := found.told()):
        from krs.plots.calibration import save_told

        save_told(told, folder / PICTURE)
        names.append(PICTURE)
    print(found)
    print(f"written to {folder}/: {', '.join(names)}")


def _check(folder: Path, thresholds: Path, quiet: bool) -> None:
    """Verdicts with the retain model at hand, and without it."""
    import pandas as pd

    from krs.instruments.calibration import check_verdicts
    from krs.instruments.verdict import read_thresholds

    by = read_thresholds(thresholds)
    given = {"with": True, "without": False}
    tables = {name: check_verdicts(folder, by, retain=has, progress=not quiet) for name, has in given.items()}
    table = pd.concat(tables, names=["retain"])
    write_text(folder / VERDICTS, table.to_csv())
    print(as_text(table.drop(columns="why")))
    for name, one in tables.items():
        print(f"{name} a retain model: {one.decided.sum()} of {len(one)} decided, {one.wrong.sum()} wrong")
    print(f"written to {folder}/: {VERDICTS}")
