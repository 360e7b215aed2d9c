"""`krs answers`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

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
from krs.errors import KrsError
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
    completions: Annotated[
        bool, typer.Option(help="the files hold texts: both models go on from the first half of each")
    ] = False,
    n_tokens: Annotated[int | None, typer.Option(help="at most so many an answer (30) or continuation (50)")] = None,
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
    """Ask both models the same, or have them go on with the same texts; writes answers.json (everything), .csv and .md.

    With --unrelated fig2.png comes beside them.

    Interrupted, the same command goes on from answers.part.json.
    """
    check_names(vanilla, unlearned)
    if completions and (chat or template_arg):
        raise KrsError("--completions gives models texts as they are: leave --chat and --template-arg out")
    read = _halves if completions else partial(files.questions, chat=chat)
    asked = [read(target), read(unrelated) if unrelated is not None else []]
    names = ["answers.json", "answers.csv", "answers.md", "fig2.png"]
    check_unwritten(output, names[0], overwrite)
    check_at_hand(vanilla, unlearned)

    import krs
    from krs.cli.words import page, said

    names = writable(output, names[:3], names[3] if unrelated is not None else None)
    unfinished = output / "answers.part.json"
    options: dict[str, Any] = {} if n_tokens is None else {"n_tokens": n_tokens}
    if not completions:
        options["chat_template_kwargs"] = files.template_arguments(template_arg)
    with interruptible():
        found = (krs.metrics.text_completion if completions else krs.metrics.answers)(
            vanilla,
            unlearned,
            *asked,
            bleu=bleu,  # type: ignore[arg-type]
            reuse=None if reuse is None else krs.metrics.load_answers(reuse),
            progress=not quiet,
            vocabulary=vocabulary,  # type: ignore[arg-type]
            checkpoint=unfinished,
            tokenizer=tokenizer,
            device=device,
            dtype=dtype,
            device_map=device_map,
            **options,
        )
    found.save(output / "answers.json")
    unfinished.unlink()
    write_table(found.frame, output / "answers.csv")
    write_text(output / "answers.md", page(found))
    print(found)
    print("\n".join(said(found.shown.groupby("side", sort=False).head(_SHOWN))))
    (output / "fig2.png").unlink(missing_ok=True)  # of an earlier call
    draw(found, "answers", output, "fig2.png", names)
    print(f"written to {output}/: {', '.join(names)}")


def _halves(path: Path) -> list[Any]:
    """Texts of a file, and pairs as two halves."""
    return [t if isinstance(t, str) else (t.get("prompt"), t.get("answer")) for t in files.texts(path)]
