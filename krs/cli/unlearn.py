"""`krs unlearn`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from krs import files
from krs.cli.options import Device, Output, Quiet, TemplateArgs
from krs.cli.shell import app, check_at_hand, check_names
from krs.errors import KrsError
from krs.wording import counted


@app.command()
def unlearn(
    method: Annotated[
        str,
        typer.Argument(
            help="dpo_idk, dpo_retain_text, ga, grad_diff, grad_diff_ce, memit_empty, memit_entropy, npo, npo_kl, rmu, "
            "simnpo, undial or a plugin's"
        ),
    ],
    model: Annotated[str, typer.Option(help="directory, hub id, GGUF file, or 'smollm2'")],
    forget: Annotated[Path, typer.Option(help="a text a line; or .json / .jsonl of texts or {prompt, answer}")],
    output: Output,
    retain: Annotated[Path | None, typer.Option(help="the same, of what is to be kept")] = None,
    side: Annotated[
        list[str] | None, typer.Option(help="NAME=FILE, texts of a further side of a plugin's method; repeatable")
    ] = None,
    corpus: Annotated[Path | None, typer.Option(help="any text, a line a text or .jsonl; for MEMIT")] = None,
    chat: Annotated[bool, typer.Option(help="put the prompts of pairs through the chat template")] = False,
    device: Device = "auto",
    dtype: Annotated[str, typer.Option(help="to load the model in, such as bfloat16")] = "auto",
    overwrite: Annotated[bool, typer.Option(help="write into a directory that is not empty")] = False,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="such as learning_rate=1e-5 (krs methods NAME); repeatable"),
    ] = None,
    template_arg: TemplateArgs = None,
    quiet: Quiet = False,
) -> None:
    """Unlearn texts from a copy of a model; writes model, tokenizer and krs_unlearn.json to a new directory.

    Interrupted, the same command goes on from the last checkpoint. Several processes: put `accelerate launch -m
    krs.cli` in the place of `krs`.
    """
    check_names(model)
    unwanted = files.texts(forget, chat)
    wanted = None if retain is None else files.texts(retain, chat)
    further = {name: files.texts(file, chat) for name, file in map(_side, side or [])}
    any_text = None if corpus is None else files.texts(corpus)
    options = dict(files.setting(given) for given in settings or [])
    check_at_hand(model)

    from krs import unlearn as methods

    methods.run(
        method,
        model,
        forget=unwanted,
        retain=wanted,
        sides=further or None,
        corpus=any_text,
        output_dir=output,
        overwrite=overwrite,
        device=device,
        dtype=files.dtype(dtype),
        chat_template_kwargs=files.template_arguments(template_arg),
        progress=not quiet,
        **options,
    )
    if int(os.environ.get("RANK", "0")):
        return
    report = json.loads((output / methods.REPORT).read_text(encoding="utf-8"))
    did = f"value vectors edited at layers {report.get('edited_layers')}"
    if "steps" in report:
        ended = f", stopped: {report['stopped']}" if report["stopped"] else ""
        did = f"{counted(report['steps'], 'step')}, last loss {report['log'][-1]['loss']:.4g}{ended}"
    print(f"{method}: {did}; {report['seconds']:.0f} s; written to {output}/")


def _side(given: str) -> tuple[str, Path]:
    name, equals, file = given.partition("=")
    if not (name and equals and file):
        raise KrsError(f"--side {given!r}: give a side's name and its file, such as paraphrase=texts.jsonl")
    return name, Path(file)
