"""`krs prepare`."""

from __future__ import annotations

import shlex
from typing import Annotated

import typer

from krs import files
from krs.cli.options import Device, DeviceMap, Dtype, Output, Quiet, TemplateArgs, TokenizerName
from krs.cli.outcome import interruptible
from krs.cli.shell import app, check_at_hand, check_names


@app.command()
def prepare(
    concept: Annotated[str, typer.Argument(help="a bundled concept, or a file of concepts (the paper's format too)")],
    model: Annotated[str, typer.Option(help="the vanilla model, whose answers are to be unlearned")],
    output: Output,
    name: Annotated[str | None, typer.Option(help="which concept of the file")] = None,
    only: Annotated[str | None, typer.Option(help="some of its questions, by number from 0, such as 0,3,4")] = None,
    retain_from: Annotated[str, typer.Option(help="whose retain questions serve one that has none")] = "harry_potter",
    chat: Annotated[bool, typer.Option(help="put each question through the chat template")] = False,
    n_tokens: Annotated[int, typer.Option(help="at most so many tokens an answer")] = 30,
    overwrite: Annotated[bool, typer.Option(help="replace what an earlier call wrote")] = False,
    template_arg: TemplateArgs = None,
    tokenizer: TokenizerName = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    device_map: DeviceMap = None,
    quiet: Quiet = False,
) -> None:
    """Ask a model about a concept, and write what the other commands take.

    forget.jsonl and retain.jsonl hold questions with the model's own answers, requests.jsonl the same for MEMIT, and
    target.txt and unrelated.txt questions alone. Interrupted, the same command goes on from prepare.part.json.
    """
    numbers = None if only is None else files.numbers(only, "--only")
    check_names(model)
    check_at_hand(model)

    from krs.unlearn.prepare import prepare as write

    with interruptible():
        found = write(
            concept,
            model,
            output,
            name,
            only=numbers,
            retain_from=retain_from,
            chat=chat,
            n_tokens=n_tokens,
            overwrite=overwrite,
            quiet=quiet,
            chat_template_kwargs=files.template_arguments(template_arg),
            tokenizer=tokenizer,
            device=device,
            dtype=dtype,
            device_map=device_map,
        )
    answers = (output / "forget.jsonl").read_text(encoding="utf-8")
    print(answers, end="")
    many = answers.count("\n")
    which, right = ("answer above is", "is it") if many == 1 else (f"{many} answers above are", "are they")
    print(f"{found.name}: the {which} what the model is to forget: {right} right?")
    print(f"written to {output}/: {', '.join(sorted(p.name for p in output.iterdir()))}")
    next_one = ["krs", "unlearn", "npo_kl", "--model", model, *(["--chat"] if chat else [])]
    next_one += ["--forget", f"{output}/forget.jsonl", "--retain", f"{output}/retain.jsonl", "-o", f"{output}/npo_kl"]
    print(f"next, for one: {shlex.join(next_one)}")
