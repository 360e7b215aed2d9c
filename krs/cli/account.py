"""`krs account`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from krs import files
from krs.cli.options import (
    Device,
    DeviceMap,
    Dtype,
    Output,
    Quiet,
    TemplateArgs,
    TokenizerName,
    Unlearned,
    Vanilla,
    VocabularyOption,
)
from krs.cli.outcome import check_unwritten, interruptible, writable, write_table
from krs.cli.shell import app, check_names
from krs.writing import save_in_the_end


@app.command()
def account(
    vanilla: Vanilla,
    unlearned: Unlearned,
    prompts: Annotated[
        Path, typer.Option(help="a prompt a line; or .json / .jsonl of strings, chat messages or token ids")
    ],
    output: Output,
    unrelated: Annotated[Path | None, typer.Option(help="prompts about other things, accounted for beside")] = None,
    answers: Annotated[Path | None, typer.Option(help="answers to score, a file like that of the prompts")] = None,
    points: Annotated[int, typer.Option(help="points of the line between the weights; more are more exact")] = 6,
    n_tokens: Annotated[int, typer.Option(help="answer tokens scored a prompt")] = 30,
    chat: Annotated[bool, typer.Option(help="put each prompt through the chat template")] = False,
    overwrite: Annotated[bool, typer.Option(help="replace what an earlier call wrote")] = False,
    template_arg: TemplateArgs = None,
    tokenizer: TokenizerName = None,
    vocabulary: VocabularyOption = "same",
    device: Device = "auto",
    dtype: Dtype = "auto",
    device_map: DeviceMap = None,
    quiet: Quiet = False,
) -> None:
    """Which weights make the difference, by component, layer and unit; writes account.krs, account.csv and a figure."""
    check_names(vanilla, unlearned)
    asked = files.questions(prompts, chat)
    check_unwritten(output, "account.krs", overwrite)
    others = None if unrelated is None else files.questions(unrelated, chat)
    given = None if answers is None else files.read_prompts(answers)

    import krs
    from krs.cli.alt import in_words
    from krs.plots.account import save_account

    names = writable(output, ["account.krs", "account.csv"], "account.png")
    with interruptible():
        found = krs.account(
            vanilla,
            unlearned,
            asked,
            answers=given,
            unrelated=others,
            points=points,
            n_tokens=n_tokens,
            tokenizer=tokenizer,
            vocabulary=vocabulary,  # type: ignore[arg-type]
            chat_template_kwargs=files.template_arguments(template_arg),
            progress=not quiet,
            device=device,
            dtype=dtype,
            device_map=device_map,
        )
    save_in_the_end(lambda path: found.save(path, overwrite=True), output / "account.krs", "the account", found)
    write_table(found.to_frame(), output / "account.csv")
    print(found)
    if "account.png" in names:
        name, description = in_words({"": found}, "account")
        save_account(*found.picture(), output / "account.png", name=name, description=description)
    print(f"written to {output}/: {', '.join(names)}")
