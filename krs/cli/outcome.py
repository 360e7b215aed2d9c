"""How a command leaves what it made: tried beforehand, written in one step, and named when it is interrupted."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from krs.errors import KrsError
from krs.extras import installed, missing
from krs.saved import Kind
from krs.writing import check_folder, write_text

_INTERRUPTED = 130


@contextmanager
def interruptible(overwrite: bool = False) -> Iterator[None]:
    """Ctrl-C ends the command with what the exception notes: where the work so far is, and how it goes on.

    With `overwrite` the same command would start again, so that it goes on without that option.
    """
    same = "the same command without --overwrite" if overwrite else "the same command"
    try:
        yield
    except KeyboardInterrupt as stop:
        for note in getattr(stop, "__notes__", None) or ["nothing new is kept"]:
            print(f"krs: interrupted; {note.replace('the same call', same)}", file=sys.stderr)
        raise typer.Exit(_INTERRUPTED) from None


def writable(folder: Path, names: Sequence[str], figure: str | None) -> list[str]:
    """The names of files that a command is going to write; `KrsError` now rather than later if it cannot.

    The figure is left out, and said so, where there is no matplotlib.
    """
    wanted = [*names, *([figure] if figure is not None else [])]
    if figure is not None and not installed("matplotlib"):
        print(f"krs: {figure} is left out: {missing('matplotlib', 'plot', 'a figure')}", file=sys.stderr)
        wanted.remove(figure)
    check_folder(folder, wanted, "--output")
    return wanted


def check_unwritten(folder: Path, name: str, overwrite: bool) -> None:
    """Raise `KrsError` where an earlier call has left its result, unless it is to be replaced."""
    if (folder / name).exists() and not overwrite:
        raise KrsError(f"{str(folder)!r} holds what an earlier call wrote: give another directory, or overwrite=True")


@contextmanager
def set_aside(file: Path, overwrite: bool) -> Iterator[None]:
    """With `overwrite` the file is out of the way meanwhile; it comes back where the block leaves none in its place.

    Without, an error about what is in the file says that there is that option.
    """
    spare = file.with_name(f".{file.name}.before")
    there = file.exists()
    if overwrite and there:
        file.replace(spare)
    try:
        yield
    except KrsError as error:
        if there and not overwrite and "holds another sweep" in str(error):
            error.add_note("--overwrite starts again in this directory")
        raise
    finally:
        if spare.exists() and not file.exists():
            spare.replace(file)
        spare.unlink(missing_ok=True)


def write_table(frame: Any, path: Path) -> None:
    """A data frame as CSV."""
    write_text(path, frame.to_csv(index=False))


def draw(found: Any, kind: Kind, folder: Path, figure: str, names: Sequence[str]) -> None:
    """The figure of a result of a kind of `krs.saved`, if it is among the names, with what it shows in words."""
    from krs.cli.alt import in_words
    from krs.plots import save_figure

    if figure in names:
        what = {"": [found]} if kind == "answers" else found
        save_figure(what, folder / figure, *in_words({"": found}, kind))
