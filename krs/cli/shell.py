"""The application that the commands are registered with, and how it ends."""

from __future__ import annotations

import inspect
import signal
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from krs import files, names
from krs.cli import busy
from krs.errors import KrsError
from krs.names import check_name
from krs.progress import before_the_first, loads_told, warnings_as_lines


class _Commands(typer.Typer):
    """Helps are the functions' docstrings, each paragraph as one line: a terminal breaks lines where it ends."""

    def command(self, name: str | None = None, **options: Any) -> Callable[[Any], Any]:
        def register(function: Callable[..., Any]) -> Callable[..., Any]:
            paragraphs = [" ".join(p.split()) for p in inspect.getdoc(function).split("\n\n")]  # type: ignore[union-attr]
            options.update(help="\n\n".join(paragraphs), short_help=paragraphs[0])
            register_it = super(_Commands, self).command(name, **options)
            return register_it(function)

        return register


app = _Commands(
    help="Has an unlearned language model forgotten, or only learned not to say?",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def version(
    show: Annotated[bool, typer.Option("--version", help="print the version and stop")] = False,
) -> None:
    """Has an unlearned language model forgotten, or only learned not to say?"""
    if show:
        import krs

        print(krs.__version__)
        raise typer.Exit


def check_names(*models: str) -> None:
    """Raise `KrsError` for models that cannot be, before torch is imported; they are checked in full when loaded."""
    for name in models:
        check_name(name)


def check_at_hand(*models: str) -> None:
    """Raise `KrsError` for models that are neither here nor to be fetched now: the last that is asked before torch."""
    for name in models:
        names.check_at_hand(name)


def main() -> None:
    """Entry point: errors of ours are printed as one message, without a traceback. SIGTERM does what Ctrl-C does.

    Helps and errors of usage come in boxes in a terminal, and as plain text in a pipe or a file.
    """
    app.rich_markup_mode = "rich" if sys.stdout.isatty() and sys.stderr.isatty() else None
    was_terminated = _terminate_as_interrupt()
    try:
        is_quiet = not {"--quiet", "-q"}.isdisjoint(sys.argv[1:])
        with warnings_as_lines(), before_the_first(busy.note), loads_told(show=not is_quiet):
            app()
    except KrsError as error:
        said = "\n".join([str(error), *getattr(error, "__notes__", [])])
        print(f"krs: {files.in_options(said, next(iter(sys.argv[1:]), ''))}", file=sys.stderr)
        raise SystemExit(2) from None
    except SystemExit:
        if was_terminated():
            raise SystemExit(128 + signal.SIGTERM) from None
        raise


def _terminate_as_interrupt() -> Callable[[], bool]:
    """Have SIGTERM, which batch systems send before they kill, keep what Ctrl-C keeps; says whether it came.

    It is passed on as SIGINT, so that whoever makes Ctrl-C wait for the end of a step makes it wait too.
    """
    came: list[int] = []

    def heard(number: int, _: Any) -> None:
        came.append(number)
        if callable(signal.getsignal(signal.SIGINT)):
            signal.raise_signal(signal.SIGINT)
        else:  # ignored, as it is in the background of a shell
            raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, heard)
    return lambda: bool(came)
