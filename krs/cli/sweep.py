"""`krs sweep`."""

from __future__ import annotations

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
from krs.cli.outcome import draw, interruptible, set_aside, writable, write_table
from krs.cli.shell import app, check_at_hand, check_names
from krs.errors import KrsError


@app.command()
def sweep(
    vanilla: Vanilla,
    unlearned: Unlearned,
    prompts: Annotated[
        Path, typer.Option(help="a prompt a line; or .json / .jsonl of strings, chat messages or token ids")
    ],
    output: Output,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            help="such as mlp_coef+attn_out, or some heads or units alone: 'head_out.heads(0,3)', 'mlp_coef.units(7)'; "
            "may be repeated"
        ),
    ] = None,
    window: Annotated[
        str,
        typer.Option(
            help="5 or centred:5 (a width), sliding:4, each, from_layer_on, up_to_layer, last:3, or layers: 7-9,17-17"
        ),
    ] = "5",
    n_tokens: Annotated[int, typer.Option(help="answer tokens scored a prompt")] = 30,
    measure: Annotated[list[str] | None, typer.Option(help="such as kl or answer_logprob; may be repeated")] = None,
    direction: Annotated[str, typer.Option(help="restore, or transplant unlearned pieces")] = "restore",
    positions: Annotated[
        str | None,
        typer.Option(help="prompt, answer, scored, last_prompt, subject, last_subject, each, or such as 0,-1"),
    ] = None,
    subjects: Annotated[Path | None, typer.Option(help="the prompts' subjects, a line each")] = None,
    scoring: Annotated[str, typer.Option(help="next-token or paper-code")] = "next-token",
    chat: Annotated[bool, typer.Option(help="put each prompt through the chat template")] = False,
    answers: Annotated[Path | None, typer.Option(help="answers to score, a file like that of the prompts")] = None,
    engine: Annotated[str, typer.Option(help="auto, wavefront, plain, ray, or a package's")] = "auto",
    memory: Annotated[str, typer.Option(help="what the sweep may keep: 'auto', or a size such as 4GiB")] = "auto",
    offload: Annotated[str | None, typer.Option(help="'disk' for models larger than memory; give --answers")] = None,
    overwrite: Annotated[bool, typer.Option(help="replace what an earlier sweep wrote, another or the same")] = False,
    template_arg: TemplateArgs = None,
    tokenizer: TokenizerName = None,
    vocabulary: VocabularyOption = "same",
    device: Device = "auto",
    dtype: Dtype = "auto",
    device_map: DeviceMap = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="print plan, memory and time; load and write nothing")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Sweep a pair of models; writes sweep.krs, krs.csv and fig1.png.

    Interrupted, it says how much is done, and the same command goes on from there. The first restorations are done
    after some two fifths of a pass through the models; before that, the vanilla answers are kept, sixteen at a time.
    """
    check_names(vanilla, unlearned)
    asked = files.questions(prompts, chat)
    given = None if answers is None else files.read_prompts(answers)
    shape, sizes = files.windows(window)
    check_at_hand(vanilla, unlearned)

    import krs

    common: dict[str, Any] = {
        "settings": settings or None,
        "windows": getattr(krs.windows, shape)(*sizes),
        "n_tokens": n_tokens,
        "positions": files.positions(positions),
        "subjects": None if subjects is None else files.read_prompts(subjects),
        "answers": given,
        "tokenizer": tokenizer,
        "device": device,
        "dtype": dtype,
        "device_map": device_map,
        "offload": offload,
        "chat_template_kwargs": files.template_arguments(template_arg),
    }
    if dry_run:
        _print_estimate(vanilla, unlearned, asked, common)
        return
    names = writable(output, ["sweep.krs", "krs.csv"], "fig1.png")
    with interruptible(overwrite), set_aside(output / "sweep.krs", overwrite):
        result = krs.sweep(
            vanilla,
            unlearned,
            asked,
            **common,
            scoring=scoring,  # type: ignore[arg-type]
            measures=measure or (),
            direction=direction,  # type: ignore[arg-type]
            engine=engine,
            memory=memory,
            progress=not quiet,
            vocabulary=vocabulary,  # type: ignore[arg-type]
            checkpoint=output / "sweep.krs",
        )
    write_table(_with_measures(result), output / "krs.csv")
    print(result)
    if result.measures[1:]:
        print(f"also measured: {', '.join(result.measures[1:])} (in krs.csv; krs show, krs plot --measure)")
    draw(result, "sweep", output, "fig1.png", names)
    print(f"written to {output}/: {', '.join(names)}")


def _with_measures(result: Any) -> Any:
    """The tidy table, and of each further measure its mean and recovery."""
    frame = result.to_frame()
    for name in result.measures[1:]:
        for what, table in ((name, result.table(name)), (f"{name}_recovery", result.recovery(name))):
            frame[what] = result.in_order(table)
    return frame


def _print_estimate(vanilla: str, unlearned: str, asked: list[Any], common: dict[str, Any]) -> None:
    from krs.restore.estimate import estimate

    found = estimate(vanilla, unlearned, asked, **common)
    print(found)
    if found.problem is not None:
        raise KrsError(found.problem)
