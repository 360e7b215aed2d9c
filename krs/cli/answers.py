"""`krs answers`."""

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
from krs.cli.outcome import check_unwritten, draw, interruptible, writable, write_table
from krs.cli.shell import app, check_at_hand, check_names
from krs.writing import write_text

_SHOWN = 2
"""So many answers to questions of each side are printed."""


@app.command()
def answers(
    vanilla: Vanilla,
    unlearned: Unlearned,
    target: Annotated[Path, typer.Option(help="questions about what was unlearned; a file as for sweep")],
    output: Output,
    unrelated: Annotated[Path | None, typer.Option(help="questions about other things")] = None,
    chat: Annotated[bool, typer.Option(help="put each question through the chat template")] = False,
    n_tokens: Annotated[int, typer.Option(help="at most so many tokens an answer")] = 30,
    bleu: Annotated[str, typer.Option(help="sacrebleu or paper-code")] = "sacrebleu",
    reuse: Annotated[Path | None, typer.Option(help="an answers.json whose vanilla answers are taken over")] = None,
    overwrite: Annotated[bool, typer.Option(help="replace what an earlier call wrote")] = False,
    template_arg: TemplateArgs = None,
    tokenizer: TokenizerName = None,
    vocabulary: VocabularyOption = "same",
    device: Device = "auto",
    dtype: Dtype = "auto",
    device_map: DeviceMap = None,
    quiet: Quiet = False,
) -> None:
    """Ask both models the same; writes answers.json (everything), .csv and .md and, with --unrelated, fig2.png.

    Interrupted, the same command goes on from answers.part.json.
    """
    check_names(vanilla, unlearned)
    asked = [files.questions(target, chat), files.questions(unrelated, chat) if unrelated is not None else []]
    names = ["answers.json", "answers.csv", "answers.md", "fig2.png"]
    check_unwritten(output, names[0], overwrite)
    check_at_hand(vanilla, unlearned)

    import krs
    from krs.cli.words import page, said

    names = writable(output, names[:3], names[3] if unrelated is not None else None)
    unfinished = output / "answers.part.json"
    with interruptible():
        found = krs.metrics.answers(
            vanilla,
            unlearned,
            *asked,
            n_tokens=n_tokens,
            bleu=bleu,  # type: ignore[arg-type]
            reuse=None if reuse is None else krs.metrics.load_answers(reuse),
            progress=not quiet,
            chat_template_kwargs=files.template_arguments(template_arg),
            vocabulary=vocabulary,  # type: ignore[arg-type]
            checkpoint=unfinished,
            tokenizer=tokenizer,
            device=device,
            dtype=dtype,
            device_map=device_map,
        )
    found.save(output / "answers.json")
    unfinished.unlink()
    write_table(found.frame, output / "answers.csv")
    write_text(output / "answers.md", page(found))
    print(found)
    print("\n".join(said(found.frame.groupby("side", sort=False).head(_SHOWN))))
    (output / "fig2.png").unlink(missing_ok=True)  # of an earlier call
    draw({"": [found]}, output, "fig2.png", names)
    print(f"written to {output}/: {', '.join(names)}")
