"""`krs dissect`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from krs import files
from krs.cli.options import Device, DeviceMap, Dtype, Output, Quiet, TokenizerName, Unlearned, Vanilla
from krs.cli.outcome import interruptible
from krs.cli.shell import app, check_at_hand, check_names
from krs.writing import check_folder

_WRITTEN = ["report.html", "report.json"]


@app.command()
def dissect(
    vanilla: Vanilla,
    unlearned: Unlearned,
    target: Annotated[
        Path,
        typer.Option(help="what was to be forgotten: .jsonl of {question, answer, …}; or questions alone, a line each"),
    ],
    output: Output,
    unrelated: Annotated[Path | None, typer.Option(help="the same of what was not, for controls")] = None,
    retain: Annotated[str | None, typer.Option(help="a model that never knew the target, where there is one")] = None,
    budget: Annotated[str, typer.Option(help="how long it may take: 90s, 10m, 1h; none for no limit")] = "10m",
    only: Annotated[list[str] | None, typer.Option(help="an instrument to run, in this order; repeatable")] = None,
    nulls: Annotated[bool, typer.Option("--nulls/--no-nulls", help="read each under its nulls too")] = True,
    chat: Annotated[
        bool | None, typer.Option("--chat/--no-chat", help="ask as a user's message; as the tokenizer has a template")
    ] = None,
    n_tokens: Annotated[int, typer.Option(help="at most so many tokens of an answer are looked at")] = 64,
    seed: Annotated[int, typer.Option(help="of everything that is drawn")] = 0,
    tokenizer: TokenizerName = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    device_map: DeviceMap = None,
    quiet: Quiet = False,
) -> None:
    """Has it forgotten, or does it only not say? Reads instruments beside their nulls; writes a page and its data.

    Interrupted, the same command goes on: readings are kept as they are made.
    """
    models = [vanilla, unlearned, *([retain] if retain is not None else [])]
    check_names(*models)
    for file in (target, unrelated):
        if file is not None:
            files.read_prompts(file)
    check_folder(output, _WRITTEN, "--output")
    check_at_hand(*models)

    import krs

    with interruptible():
        found = krs.dissect(
            vanilla,
            unlearned,
            target,
            unrelated=unrelated if unrelated is not None else (),
            retain=retain,
            budget=None if budget == "none" else budget,
            only=only or None,
            nulls=nulls,
            tokenizer=tokenizer,
            chat=chat,
            n_tokens=n_tokens,
            seed=seed,
            output_dir=output,
            progress=not quiet,
            device=device,
            dtype=dtype,
            device_map=device_map,
        )
    print(found)
    print(f"written to {output}/: {', '.join(_WRITTEN)}")
