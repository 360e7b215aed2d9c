"""The `krs` command: thin, one function a sub-command."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from krs import files
from krs.errors import KrsError

app = typer.Typer(
    help="Has an unlearned language model forgotten, or only learned not to say?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Output = Annotated[Path, typer.Option("--output", "-o", help="directory to write to")]
TemplateArgs = Annotated[
    list[str] | None,
    typer.Option("--template-arg", help="for the chat template, such as enable_thinking=false; may be repeated"),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="no progress bars")]


@app.callback(invoke_without_command=True)
def version(
    show: Annotated[bool, typer.Option("--version", help="print the version and stop")] = False,
) -> None:
    """Has an unlearned language model forgotten, or only learned not to say?"""
    if show:
        import krs

        print(krs.__version__)
        raise typer.Exit


@app.command()
def demo(output: Output = Path("out/demo"), quiet: Quiet = False) -> None:
    """Unlearn Harry Potter from the bundled model, sweep it, draw the figure."""
    from krs.demo import demo as run

    run(output, progress=not quiet)


@app.command()
def sweep(
    vanilla: Annotated[str, typer.Argument(help="directory, hub id, GGUF file, or 'smollm2'")],
    unlearned: Annotated[str, typer.Argument(help="the same, of the unlearned model")],
    prompts: Annotated[Path, typer.Option(help="a prompt a line; or .json / .jsonl of strings or chat messages")],
    output: Output,
    settings: Annotated[list[str] | None, typer.Option(help="such as mlp_coef+attn_out; may be repeated")] = None,
    window: Annotated[int, typer.Option(help="width of the centred window, odd")] = 5,
    n_tokens: Annotated[int, typer.Option(help="answer tokens scored a prompt")] = 30,
    scoring: Annotated[str, typer.Option(help="next-token or paper-code")] = "next-token",
    chat: Annotated[bool, typer.Option(help="put each prompt through the chat template")] = False,
    answers: Annotated[Path | None, typer.Option(help="answers to score, a file like that of the prompts")] = None,
    engine: Annotated[str, typer.Option(help="auto, wavefront or plain")] = "auto",
    memory: Annotated[str, typer.Option(help="what the sweep may keep: 'auto', or a size such as 4GiB")] = "auto",
    offload: Annotated[str | None, typer.Option(help="'disk' for models larger than memory; give --answers")] = None,
    template_arg: TemplateArgs = None,
    quiet: Quiet = False,
) -> None:
    """Sweep a pair of models; writes sweep.krs, krs.csv and fig1.png. Interrupted, it goes on where it was."""
    import krs
    from krs.plots import save_figure

    asked = files.questions(prompts, chat)
    output.mkdir(parents=True, exist_ok=True)
    result = krs.sweep(
        vanilla,
        unlearned,
        asked,
        settings=settings or None,
        windows=window,
        n_tokens=n_tokens,
        scoring=scoring,  # type: ignore[arg-type]
        engine=engine,  # type: ignore[arg-type]
        memory=memory,
        answers=None if answers is None else files.read_prompts(answers),
        offload=offload,  # type: ignore[arg-type]
        progress=not quiet,
        chat_template_kwargs=files.template_arguments(template_arg),
        checkpoint=output / "sweep.krs",
    )
    result.to_frame().to_csv(output / "krs.csv", index=False)
    print(result)
    save_figure(result, output / "fig1.png")
    print(f"written to {output}/: sweep.krs, krs.csv, fig1.png")


@app.command()
def unlearn(
    method: Annotated[
        str,
        typer.Argument(
            help="dpo_idk, dpo_retain_text, ga, grad_diff, grad_diff_ce, memit_empty, memit_entropy, npo, npo_kl, "
            "simnpo or a plugin's"
        ),
    ],
    model: Annotated[str, typer.Option(help="directory, hub id, GGUF file, or 'smollm2'")],
    forget: Annotated[Path, typer.Option(help="a text a line; or .json / .jsonl of texts or {prompt, answer}")],
    output: Output,
    retain: Annotated[Path | None, typer.Option(help="the same, of what is to be kept")] = None,
    corpus: Annotated[Path | None, typer.Option(help="any text, a line a text or .jsonl; for MEMIT")] = None,
    chat: Annotated[bool, typer.Option(help="put the prompts of pairs through the chat template")] = False,
    dtype: Annotated[str, typer.Option(help="to load the model in, such as bfloat16")] = "auto",
    overwrite: Annotated[bool, typer.Option(help="write into a directory that is not empty")] = False,
    settings: Annotated[list[str] | None, typer.Option("--set", help="such as learning_rate=1e-5; repeatable")] = None,
    template_arg: TemplateArgs = None,
    quiet: Quiet = False,
) -> None:
    """Unlearn texts from a copy of a model; writes model, tokenizer and krs_unlearn.json to a new directory.

    Interrupted, the same command goes on from the last checkpoint. Several processes: put `accelerate launch -m
    krs.cli` in the place of `krs`.
    """
    import os

    from krs import unlearn as methods

    methods.run(
        method,
        model,
        forget=files.texts(forget, chat),
        retain=None if retain is None else files.texts(retain, chat),
        corpus=None if corpus is None else files.texts(corpus),
        output_dir=output,
        overwrite=overwrite,
        dtype=files.dtype(dtype),
        chat_template_kwargs=files.template_arguments(template_arg),
        progress=not quiet,
        **dict(files.setting(given) for given in settings or []),
    )
    if int(os.environ.get("RANK", "0")):
        return
    report = json.loads((output / methods.REPORT).read_text(encoding="utf-8"))
    did = f"value vectors edited at layers {report.get('edited_layers')}"
    if "steps" in report:
        ended = f", stopped: {report['stopped']}" if report["stopped"] else ""
        did = f"{report['steps']} steps, last loss {report['log'][-1]['loss']:.4g}{ended}"
    print(f"{method}: {did}; {report['seconds']:.0f} s; written to {output}/")


@app.command()
def prepare(
    concept: Annotated[str, typer.Argument(help="a bundled concept, or a file of concepts (the paper's format too)")],
    model: Annotated[str, typer.Option(help="the vanilla model, whose answers are to be unlearned")],
    output: Output,
    name: Annotated[str | None, typer.Option(help="which concept of the file")] = None,
    retain_from: Annotated[str, typer.Option(help="whose retain questions serve one that has none")] = "harry_potter",
    chat: Annotated[bool, typer.Option(help="put each question through the chat template")] = False,
    n_tokens: Annotated[int, typer.Option(help="at most so many tokens an answer")] = 30,
    template_arg: TemplateArgs = None,
    overwrite: Annotated[bool, typer.Option(help="replace what an earlier call wrote")] = False,
    quiet: Quiet = False,
) -> None:
    """Ask a model about a concept, and write what the other commands take.

    forget.jsonl and retain.jsonl hold questions with the model's own answers, requests.jsonl the same for MEMIT, and
    target.txt and unrelated.txt questions alone.
    """
    from krs.unlearn.prepare import prepare as write

    options = {"retain_from": retain_from, "chat": chat, "n_tokens": n_tokens, "overwrite": overwrite, "quiet": quiet}
    options["chat_template_kwargs"] = files.template_arguments(template_arg)
    found = write(concept, model, output, name, **options)  # type: ignore[arg-type]
    print((output / "forget.jsonl").read_text(encoding="utf-8"), end="")
    print(f"{found.name}: the {len(found.questions)} answers above are what the model is to forget: are they right?")
    print(f"written to {output}/: {', '.join(sorted(p.name for p in output.iterdir()))}")
    next_one = ["krs", "unlearn", "npo_kl", "--model", model, *(["--chat"] if chat else [])]
    next_one += ["--forget", f"{output}/forget.jsonl", "--retain", f"{output}/retain.jsonl", "-o", f"{output}/npo_kl"]
    print(f"next, for one: {shlex.join(next_one)}")


@app.command()
def answers(
    vanilla: Annotated[str, typer.Argument(help="directory, hub id, GGUF file, or 'smollm2'")],
    unlearned: Annotated[str, typer.Argument(help="the same, of the unlearned model")],
    target: Annotated[Path, typer.Option(help="questions about what was unlearned; a file as for sweep")],
    output: Output,
    unrelated: Annotated[Path | None, typer.Option(help="questions about other things")] = None,
    chat: Annotated[bool, typer.Option(help="put each question through the chat template")] = False,
    n_tokens: Annotated[int, typer.Option(help="at most so many tokens an answer")] = 30,
    bleu: Annotated[str, typer.Option(help="sacrebleu or paper-code")] = "sacrebleu",
    reuse: Annotated[Path | None, typer.Option(help="an answers.json whose vanilla answers are taken over")] = None,
    template_arg: TemplateArgs = None,
    overwrite: Annotated[bool, typer.Option(help="replace what an earlier call wrote")] = False,
    quiet: Quiet = False,
) -> None:
    """Ask both models the same; writes answers.json (everything), answers.csv and, with --unrelated, fig2.png."""
    import krs
    from krs.plots import save_figure

    asked = [files.questions(target, chat), files.questions(unrelated, chat) if unrelated is not None else []]
    names = ["answers.json", "answers.csv", "fig2.png"]
    if (output / names[0]).exists() and not overwrite:
        raise KrsError(f"{str(output)!r} holds what an earlier call wrote: give another directory, or overwrite=True")
    found = krs.metrics.answers(
        vanilla,
        unlearned,
        *asked,
        n_tokens=n_tokens,
        bleu=bleu,  # type: ignore[arg-type]
        reuse=None if reuse is None else krs.metrics.load_answers(reuse),
        chat_template_kwargs=files.template_arguments(template_arg),
        progress=not quiet,
    )
    output.mkdir(parents=True, exist_ok=True)
    found.save(output / "answers.json")
    found.frame.to_csv(output / "answers.csv", index=False)
    print(found)
    if unrelated is not None:
        save_figure({"": [found]}, output / names[2])
    else:
        (output / names.pop()).unlink(missing_ok=True)
    print(f"written to {output}/: {', '.join(names)}")


@app.command()
def drift(
    vanilla: Annotated[str, typer.Argument(help="directory, hub id, GGUF file, or 'smollm2'")],
    unlearned: Annotated[str, typer.Argument(help="the same, of the unlearned model")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="directory for drift.csv and drift.png")] = None,
) -> None:
    """How far the weights of two models are apart, by component (and by layer in the files)."""
    import krs
    from krs.plots import save_figure

    found = krs.metrics.drift(vanilla, unlearned)
    print(found)
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        found.frame.to_csv(output / "drift.csv", index=False)
        save_figure(found, output / "drift.png")
        print(f"written to {output}/: drift.csv, drift.png")


@app.command()
def corpus(
    source: Annotated[list[str], typer.Argument(help="files (.jsonl, .jsonl.gz, .parquet), folders or patterns")],
    concept: Annotated[str, typer.Option(help="its name, as texts have it")],
    output: Annotated[Path, typer.Option("--output", "-o", help="a .jsonl file to write")],
    alias: Annotated[list[str] | None, typer.Option(help="another name; may be repeated")] = None,
    count: Annotated[int, typer.Option(help="how many paragraphs are wanted")] = 6000,
    text_field: Annotated[str, typer.Option(help="which field or column has the text")] = "text",
    case_sensitive: Annotated[bool, typer.Option(help="take upper and lower case as they are")] = False,
    part_of_word: Annotated[bool, typer.Option(help="a mention may be part of a longer word")] = False,
    min_chars: Annotated[int, typer.Option(help="leave out paragraphs that are shorter")] = 50,
    max_chars: Annotated[int, typer.Option(help="leave out longer ones (first taken apart at lines)")] = 4000,
    overwrite: Annotated[bool, typer.Option(help="remove the output that is there, and start again")] = False,
    quiet: Quiet = False,
) -> None:
    """Keep the paragraphs of a corpus that mention a concept. Interrupted, it goes on where it was."""
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
        overwrite=overwrite,
        progress=not quiet,
    )
    print(found)
    if not found.written:
        print("nothing was found: look at the spelling, at --text-field, or add other names (--alias)")


def main() -> None:
    """Entry point: errors of ours are printed as one message, without a traceback."""
    try:
        app()
    except KrsError as error:
        print(f"krs: {files.in_options(str(error))}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
