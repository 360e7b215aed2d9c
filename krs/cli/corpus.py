"""`krs corpus`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from krs.cli.options import Quiet
from krs.cli.shell import app


@app.command()
def corpus(
    source: Annotated[list[str], typer.Argument(help="files (.jsonl, .jsonl.gz, .parquet), folders or patterns")],
    concept: Annotated[str, typer.Option(help="its name, as texts have it")],
    output: Annotated[Path, typer.Option("--output", "-o", help="a .jsonl file to write")],
    alias: Annotated[list[str] | None, typer.Option(help="another name; may be repeated")] = None,
    count: Annotated[int, typer.Option(help="how many paragraphs, or segments, are wanted")] = 6000,
    text_field: Annotated[str, typer.Option(help="which field or column has the text")] = "text",
    case_sensitive: Annotated[bool, typer.Option(help="take upper and lower case as they are")] = False,
    part_of_word: Annotated[bool, typer.Option(help="a mention may be part of a longer word")] = False,
    min_chars: Annotated[int, typer.Option(help="leave out paragraphs that are shorter")] = 50,
    max_chars: Annotated[int, typer.Option(help="leave out longer ones (first taken apart at lines)")] = 4000,
    words: Annotated[int | None, typer.Option(help="join paragraphs to segments of about so many words")] = None,
    overwrite: Annotated[bool, typer.Option(help="remove the output that is there, and start again")] = False,
    quiet: Quiet = False,
) -> None:
    """Keep what of a corpus mentions a concept: paragraphs, or segments. Interrupted, it goes on where it was."""
    from krs.data import extract

    found = extract(
        source,
        concept,
        output,
        aliases=alias or (),
        count=count,
        text_field=text_field,
        ignore_case=not case_sensitive,
        whole_word=not part_of_word,
        min_chars=min_chars,
        max_chars=max_chars,
        words=words,
        overwrite=overwrite,
        progress=not quiet,
    )
    print(found)
    if not found.written:
        print("nothing was found: look at the spelling, at --text-field, or add other names (--alias)")
