"""`krs speak`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from krs import files
from krs.cli.options import Device, DeviceMap, Dtype, TemplateArgs, TokenizerName, Unlearned, Vanilla, VocabularyOption
from krs.cli.outcome import interruptible
from krs.cli.shell import app, check_names
from krs.errors import KrsError

if TYPE_CHECKING:
    from rich.table import Table

_SPEAKERS = ("vanilla", "unlearned", "restored")


@app.command()
def speak(
    vanilla: Vanilla,
    unlearned: Unlearned,
    question: Annotated[str, typer.Argument(help="what all three are asked, or a beginning to go on with")],
    restore: Annotated[str, typer.Option(help="points put back, such as value_vectors")] = "mlp_coef+attn_out",
    layers: Annotated[str | None, typer.Option(help="where, such as 20-29 or 3,7; the last three if not given")] = None,
    chat: Annotated[bool, typer.Option(help="put the question through the chat template")] = False,
    n_tokens: Annotated[int, typer.Option(help="at most so many tokens an answer")] = 60,
    template_arg: TemplateArgs = None,
    tokenizer: TokenizerName = None,
    vocabulary: VocabularyOption = "same",
    device: Device = "auto",
    dtype: Dtype = "auto",
    device_map: DeviceMap = None,
) -> None:
    """Ask the vanilla, the unlearned and the restored model the same, and show their answers as they come.

    Side by side in a terminal; one after the other in a pipe or a file.
    """
    check_names(vanilla, unlearned)
    chosen = None if layers is None else _numbers(layers)

    import krs
    from krs.hooks import anatomy, setting
    from krs.models.given import load_given

    points = setting(restore)
    arguments = files.template_arguments(template_arg)
    given = {"vanilla": vanilla, "unlearned": unlearned}
    loaded = load_given(given, device=device, dtype=dtype, device_map=device_map)
    (v, beside), (u, _) = loaded
    n_layers = anatomy(u).n_layers
    where = chosen if chosen is not None else range(max(0, n_layers - 3), n_layers)
    with interruptible(), _shown() as hear:
        said = krs.speak(
            v,
            u,
            [{"role": "user", "content": question}] if chat else question,
            restore=points.at(*where),
            n_tokens=n_tokens,
            tokenizer=tokenizer or beside,
            hear=hear,
            vocabulary=vocabulary,  # type: ignore[arg-type]
            chat_template_kwargs=arguments,
        )
        for who in _SPEAKERS:
            if not getattr(said, who).strip():
                hear(who, "(nothing)")


def _numbers(given: str) -> list[int]:
    """Layers from `20-29` or `3,7`."""
    found: list[int] = []
    for part in given.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdigit() or (dash and not (last.isdigit() and int(first) <= int(last))):
            raise KrsError(f"--layers {given!r}: write layers as 20-29 or 3,7")
        found += range(int(first), int(last or first) + 1)
    return found


@contextmanager
def _shown() -> Iterator[Callable[[str, str], None]]:
    """What takes the pieces of the answers and shows them."""
    if not sys.stdout.isatty():
        yield _one_after_the_other()
        print()
        return
    from rich.live import Live

    said = dict.fromkeys(_SPEAKERS, "")
    with Live(_table(said), refresh_per_second=12, vertical_overflow="visible") as live:

        def hear(who: str, piece: str) -> None:
            said[who] += piece
            live.update(_table(said))

        yield hear


def _one_after_the_other() -> Callable[[str, str], None]:
    """A heading before each answer, an empty line behind it."""
    speaking: list[str] = []

    def hear(who: str, piece: str) -> None:
        if who not in speaking:
            print(f"{chr(10) * 2 if speaking else ''}{who}:")
            speaking.append(who)
            piece = piece.lstrip()
        print(piece, end="", flush=True)

    return hear


def _table(said: dict[str, str]) -> Table:
    """The answers side by side, each in a third of the terminal's width."""
    from rich.table import Table
    from rich.text import Text

    table = Table(expand=True, box=None, padding=(0, 2, 0, 0))
    for who in said:
        table.add_column(who, ratio=1, overflow="fold")
    table.add_row(*(Text(text.strip()) for text in said.values()))
    return table
