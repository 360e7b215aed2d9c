"""The main job from start to end on the bundled model: unlearn, sweep, listen, draw."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from krs.data.concepts import Concept, as_chat, load_concept
from krs.errors import KrsError
from krs.extras import require
from krs.generation.greedy import Generated, eos_ids, generate
from krs.hooks.library import ATTN_OUT, MLP_COEF
from krs.models.bundled import bundled_is_cached
from krs.models.identity import differing, identity
from krs.models.load import BUNDLED, load
from krs.plots import save_figure_or_say
from krs.restore.result import SweepResult
from krs.restore.sweep import sweep
from krs.restore.telling import title_and_description
from krs.wording import as_text, cut_off, prose
from krs.writing import check_folder, write_text

if TYPE_CHECKING:
    from krs.instruments.dissection import Dissection

METHOD = "grad_diff"
SETTINGS: dict[str, Any] = {"learning_rate": 1.5e-5, "steps": 14, "batch_size": 3, "retain_weight": 1.5}
_RECIPE = "krs_demo.json"
_SWEEP = "sweep.krs"
_PAGE = "dissect"
_PAGE_SECONDS = 150
"""For the page at the end: the demo as a whole is to take no more than six minutes on two cores."""
_SIZE = 700_000_000
"""Bytes of what is written, the checkpoint above all."""


def demo(output: str | Path = "out/demo", progress: bool = True) -> SweepResult:
    """Unlearn Harry Potter from SmolLM2-135M-Instruct, sweep the paper's four settings, hear what comes back.

    Writes to `output`: `unlearned/` (the checkpoint) and `sweep.krs` (the result), which a second run reuses (an
    interrupted sweep goes on), `fig1.png`, `krs.csv`, `answers.md` and `dissect/report.html` with its data. Five to
    six minutes on two cores.
    """
    require("accelerate", "unlearn", "unlearning")
    folder = Path(output)
    there = (folder / "unlearned" / _RECIPE).is_file()
    check_folder(
        folder, [_SWEEP, "krs.csv", "fig1.png", "answers.md", f"unlearned/{_RECIPE}"], size=0 if there else _SIZE
    )
    started = time.monotonic()
    concept = load_concept("harry_potter")
    _tell(
        "Five steps; five to six minutes on two cores, and less where an earlier run has left its model or its sweep."
    )
    _tell(
        "1/5  The vanilla model: SmolLM2-135M-Instruct, " + ("from the cache." if bundled_is_cached() else "fetched.")
    )
    vanilla, tokenizer = load(BUNDLED, device="auto")
    questions = as_chat(concept.questions)
    answers = generate(vanilla, None, questions, tokenizer=tokenizer, progress=progress)
    unlearned = _unlearned(vanilla, tokenizer, concept, answers, folder / "unlearned", progress)
    _tell("3/5  The sweep: 4 settings x 30 windows of 5 layers.")
    result = sweep(vanilla, unlearned, questions, tokenizer=tokenizer, progress=progress, checkpoint=folder / _SWEEP)
    written = [*_write(result, folder), "sweep.krs", "krs.csv", "answers.md", "unlearned/"]
    best: Any = result.best().loc[(MLP_COEF + ATTN_OUT).name]
    layers = range(int(best.first_layer), int(best.last_layer) + 1)
    where = f"layers {layers[0]}-{layers[-1]} (the best window)"
    _tell(
        "4/5  The same questions, three models. The third is the unlearned one with the vanilla MLP coefficients and "
        f"attention outputs put back, token by token, at {where}."
    )
    other = _answers(vanilla, unlearned, tokenizer, concept, answers, layers, folder / "answers.md", progress)
    _tell("5/5  The same pair under instruments that ask whether it has forgotten, or does only not say.")
    about = list(zip(concept.questions, answers, strict=True))
    beside = list(zip(concept.unrelated_questions, other, strict=True))
    found = _dissected(vanilla, unlearned, tokenizer, about, beside, folder, progress)
    written += [f"{_PAGE}/report.html"] if found is not None else []
    _say(as_text(result.krs, 3))
    _say("")
    _tell(meaning(result))
    _say("")
    if found is not None:
        _tell(answer(found))
        _say("")
    _tell(f"Written to {folder}/: {', '.join(written)}")
    _tell(f"Took {time.monotonic() - started:.0f} s.")
    return result


def meaning(result: SweepResult) -> str:
    """One paragraph that says what the curves show, made from their numbers."""
    table = result.krs
    peak = {name: (table[name].max(), table[name].idxmax()) for name in table}
    late = table["mlp_coef"].iloc[-3:].mean()
    both, values = peak["mlp_coef+attn_out"], peak["value_vectors"]
    kept = both[0] > 0.5 and both[0] > 3 * max(values[0], 0.01)
    verdict = (
        "The paper reads this as knowledge that is still there and called up differently; a model that was never "
        "taught can score as high, so the page in dissect/ asks further."
        if kept
        else "So activations put back recover little here, and the curves do not show that knowledge is still there."
    )
    return " ".join(
        [
            "What the curves mean: 0 is the unlearned model as it is, 1 the vanilla model's logits. Putting back the",
            "vanilla value vectors, the weights in which the paper looks for the knowledge, recovers at most",
            f"{values[0]:z.2f} (window centred on layer {values[1]}). Putting back the MLP coefficients recovers up to",
            f"{peak['mlp_coef'][0]:z.2f} (layer {peak['mlp_coef'][1]}; {late:z.2f} over the last three windows),",
            f"attention outputs up to {peak['attn_out'][0]:z.2f} (layer {peak['attn_out'][1]}), both together up to",
            f"{both[0]:z.2f} (layer {both[1]}). {verdict}",
            "Mind that activations carry all that the vanilla model computed below the window, while weights undo a",
            "local change only: the comparison is the paper's, and not like for like.",
        ]
    )


def answer(found: Dissection) -> str:
    """What the page says, in a sentence."""
    return f"Has it forgotten? By the instruments of the page in {_PAGE}/: {found.verdict}"


def _unlearned(vanilla: Any, tokenizer: Any, concept: Concept, answers: Generated, folder: Path, progress: bool) -> Any:
    """The unlearned model: loaded when an earlier run made it from the same recipe, trained otherwise.

    An interrupted run has left its recipe, and what it came to: the finished model, or a checkpoint to go on from.
    """
    recipe = {
        "method": METHOD,
        "settings": SETTINGS,
        "questions": [concept.questions, concept.retain_questions],
        "vanilla": identity(vanilla),
    }
    recipe = json.loads(json.dumps(recipe))
    mark = folder / _RECIPE
    made = _made(mark)
    same = {name: made.get(name) for name in recipe} == recipe
    if same and "unlearned" in made:
        _tell(f"2/5  The unlearned model: the checkpoint of an earlier run, {folder}/.")
        model = load(folder, device="auto")[0]
        if parts := differing(made["unlearned"], identity(model)):
            raise KrsError(
                f"{str(folder)!r} is not as the demo left it ({', '.join(parts)}): remove it, or give another "
                "directory with -o"
            )
        return model
    if folder.exists() and any(folder.iterdir()) and not mark.is_file():
        raise KrsError(f"{str(folder)!r} holds something that the demo did not make: give another directory with -o")
    from krs import unlearn
    from krs.unlearn import checkpoints

    if same and (folder / unlearn.REPORT).is_file() and not checkpoints.moving(folder):
        _tell(f"2/5  The unlearned model: an earlier run was stopped when it had just been saved to {folder}/.")
        model = load(folder, device="auto")[0]
        write_text(mark, json.dumps(recipe | {"unlearned": identity(model)}, indent=2))
        return model
    _tell(f"2/5  Unlearning {concept.name} with {METHOD}: the vanilla model's own answers are what it is to forget.")
    (folder.parent / _SWEEP).unlink(missing_ok=True)  # of another unlearned model
    if not same:
        (folder / unlearn.REPORT).unlink(missing_ok=True)
        write_text(mark, json.dumps(recipe, indent=2))
    others = as_chat(concept.retain_questions)
    kept = generate(vanilla, None, others, tokenizer=tokenizer, progress=progress)
    model = unlearn.run(
        METHOD,
        vanilla,
        forget=list(zip(as_chat(concept.questions), answers, strict=True)),
        retain=list(zip(others, kept, strict=True)),
        tokenizer=tokenizer,
        output_dir=folder,
        overwrite=True,
        progress=progress,
        **SETTINGS,
    )
    write_text(mark, json.dumps(recipe | {"unlearned": identity(model)}, indent=2))
    return model


def _dissected(
    vanilla: Any,
    unlearned: Any,
    tokenizer: Any,
    target: list[tuple[str, str]],
    unrelated: list[tuple[str, str]],
    folder: Path,
    progress: bool,
) -> Dissection | None:
    """The page of `krs.dissect`; nothing where it could not be made, which is then said.

    The vanilla model's own answers count as right, for they are what was unlearned.
    """
    from krs.instruments import dissect

    try:
        return dissect(
            vanilla,
            unlearned,
            target,
            unrelated=unrelated,
            tokenizer=tokenizer,
            budget=_PAGE_SECONDS,
            output_dir=folder / _PAGE,
            progress=progress,
        )
    except Exception as reason:  # noqa: BLE001 - what was made before is worth more than this page
        _tell(f"     The page is left out: {reason}")
        return None


def _made(mark: Path) -> dict[str, Any]:
    """What an earlier run noted beside its checkpoint; nothing where there is none that can be read."""
    try:
        found = json.loads(mark.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _answers(
    vanilla: Any,
    unlearned: Any,
    tokenizer: Any,
    concept: Concept,
    answers: Generated,
    layers: range,
    file: Path,
    progress: bool,
) -> Generated:
    """Print and write the answers of the three models, and the unrelated ones of the first two.

    Returns the vanilla model's unrelated ones.
    """
    about, other = as_chat(concept.questions), as_chat(concept.unrelated_questions)
    options: dict[str, Any] = {"tokenizer": tokenizer, "progress": progress}
    restore = (MLP_COEF + ATTN_OUT).at(*layers)
    said = {
        "vanilla": answers,
        "unlearned": generate(vanilla, unlearned, about, **options),
        "restored": generate(vanilla, unlearned, about, restore=restore, **options),
    }
    ends = eos_ids(vanilla)
    text = _side_by_side(f"About {concept.name}", concept.questions, said, ends)
    said = {
        "vanilla": generate(vanilla, None, other, **options),
        "unlearned": generate(vanilla, unlearned, other, **options),
    }
    text += _side_by_side("About other things, which were not trained on", concept.unrelated_questions, said, ends)
    write_text(file, f"# Answers of three models\n{text}")
    _tell(text)
    return said["vanilla"]


def _side_by_side(title: str, questions: Sequence[str], said: dict[str, Generated], ends: frozenset[int]) -> str:
    lines = [f"\n## {title}\n"]
    for i, question in enumerate(questions):
        lines.append(f"**{question}**\n")
        for name, answers in said.items():
            one_line = " ".join(cut_off(answers[i], answers.token_ids[i], ends).split())
            lines.append(f"- {name + ':':10} {one_line}")
        lines.append("")
    return "\n".join(lines) + "\n"


def _write(result: SweepResult, folder: Path) -> list[str]:
    """The table and the figure; returns the figure's name if there is one."""
    write_text(folder / "krs.csv", result.to_frame().to_csv(index=False))
    return save_figure_or_say(result, folder / "fig1.png", *title_and_description(result))


def _say(text: str) -> None:
    from tqdm import tqdm

    tqdm.write(text)


def _tell(text: str) -> None:
    """Prose, at the terminal's width."""
    _say(prose(text))
