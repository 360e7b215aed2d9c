"""The main job from start to end on the bundled model: unlearn, sweep, listen, draw."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from krs.data.concepts import Concept, as_chat, load_concept
from krs.errors import KrsError
from krs.hooks.points import ATTN_OUT, MLP_COEF
from krs.models.load import BUNDLED, load
from krs.restore.generate import generate
from krs.restore.provenance import weights_digest
from krs.restore.result import SweepResult
from krs.restore.sweep import sweep

RESTORED_LAYERS = (25, 26, 27, 28, 29)
METHOD = "grad_diff"
SETTINGS: dict[str, Any] = {"learning_rate": 1.5e-5, "steps": 14, "batch_size": 3, "retain_weight": 1.5}
_RECIPE = "krs_demo.json"


def demo(output: str | Path = "out/demo", progress: bool = True) -> SweepResult:
    """Unlearn Harry Potter from SmolLM2-135M-Instruct, sweep the paper's four settings, show what comes back.

    Writes to `output`: `unlearned/` (the checkpoint, reused by a second run), `sweep.krs` (the result), `fig1.png`,
    `krs.csv` and `answers.md`. About five minutes on two cores.
    """
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    concept = load_concept("harry_potter")
    _say("1/4  The vanilla model: SmolLM2-135M-Instruct (fetched and converted the first time).")
    vanilla, tokenizer = load(BUNDLED)
    questions = as_chat(concept.questions)
    unlearned = _unlearned(vanilla, tokenizer, concept, folder / "unlearned", progress)
    _say("3/4  The same questions, three models (the third: the unlearned one with the vanilla MLP coefficients and")
    _say(f"     attention outputs put back at layers {RESTORED_LAYERS[0]}-{RESTORED_LAYERS[-1]}, token by token).")
    _answers(vanilla, unlearned, tokenizer, concept, folder / "answers.md", progress)
    _say("4/4  The sweep: 4 settings x 30 windows of 5 layers.")
    result = sweep(vanilla, unlearned, questions, tokenizer=tokenizer, progress=progress)
    _write(result, folder)
    _say(result.krs.to_string(float_format=lambda x: f"{x:.3f}"))
    _say("")
    _say(meaning(result))
    _say("")
    _say(f"Written to {folder}/: fig1.png, sweep.krs, krs.csv, answers.md, unlearned/")
    _say(f"Took {time.monotonic() - started:.0f} s.")
    return result


def meaning(result: SweepResult) -> str:
    """One paragraph that says what the curves show, made from their numbers."""
    table = result.krs
    peak = {name: (table[name].max(), table[name].idxmax()) for name in table}
    late = table["mlp_coef"].iloc[-3:].mean()
    both, values = peak["mlp_coef+attn_out"], peak["value_vectors"]
    kept = both[0] > 0.5 and both[0] > 3 * max(values[0], 0.01)
    verdict = (
        "So what the training changed is mostly how the knowledge is called up, and much of it is still there"
        if kept
        else "So putting activations back recovers little here, and the curves do not show that knowledge is still there"
    )
    return (
        "What the curves mean: 0 is the unlearned model as it is, 1 the vanilla model's logits. Putting back the vanilla "
        f"value vectors, the weights in which the paper looks for the knowledge, recovers at most {values[0]:.2f} (window "
        f"centred on layer {values[1]}). Putting back the MLP coefficients recovers up to {peak['mlp_coef'][0]:.2f} (layer "
        f"{peak['mlp_coef'][1]}; {late:.2f} over the last three windows), attention outputs up to "
        f"{peak['attn_out'][0]:.2f} (layer {peak['attn_out'][1]}), both together up to {both[0]:.2f} (layer {both[1]}). "
        f"{verdict}. Mind that activations carry all that the vanilla model computed below the window, while weights "
        "undo a local change only: the comparison is the paper's, and not like for like."
    )


def _unlearned(vanilla: Any, tokenizer: Any, concept: Concept, folder: Path, progress: bool) -> Any:
    """The unlearned model: loaded when an earlier run made it from the same recipe, trained otherwise."""
    recipe = {
        "method": METHOD,
        "settings": SETTINGS,
        "questions": [concept.questions, concept.retain_questions],
        "vanilla": weights_digest(vanilla),
    }
    mark = folder / _RECIPE
    if mark.is_file() and json.loads(mark.read_text(encoding="utf-8")) == json.loads(json.dumps(recipe)):
        _say(f"2/4  The unlearned model: the checkpoint of an earlier run, {folder}/.")
        return load(folder)[0]
    if folder.exists() and any(folder.iterdir()) and not mark.is_file():
        raise KrsError(f"{str(folder)!r} holds something that the demo did not make: give another directory with -o")
    _say(f"2/4  Unlearning {concept.name} with {METHOD}: the vanilla model's own answers are what it is to forget.")
    from krs import unlearn

    forget = _own_answers(vanilla, concept.questions, progress)
    retain = _own_answers(vanilla, concept.retain_questions, progress)
    model = unlearn.run(
        METHOD,
        vanilla,
        forget=forget,
        retain=retain,
        tokenizer=tokenizer,
        output_dir=folder,
        overwrite=True,
        progress=progress,
        **SETTINGS,
    )
    mark.write_text(json.dumps(recipe, indent=2), encoding="utf-8")
    return model


def _own_answers(model: Any, questions: Sequence[str], progress: bool) -> list[Any]:
    chats = as_chat(tuple(questions))
    answers = generate(model, None, chats, n_tokens=30, progress=progress)
    return list(zip(chats, answers, strict=True))


def _answers(vanilla: Any, unlearned: Any, tokenizer: Any, concept: Concept, file: Path, progress: bool) -> None:
    """Print and write the answers of the three models, and the unrelated ones of the first two."""
    about, other = as_chat(concept.questions), as_chat(concept.unrelated_questions)
    restore = (MLP_COEF + ATTN_OUT).at(*RESTORED_LAYERS)
    said = [
        generate(vanilla, None, about, tokenizer=tokenizer, progress=progress),
        generate(vanilla, unlearned, about, tokenizer=tokenizer, progress=progress),
        generate(vanilla, unlearned, about, restore=restore, tokenizer=tokenizer, progress=progress),
    ]
    names = ["vanilla", "unlearned", "restored"]
    text = _side_by_side(f"About {concept.name}", concept.questions, names, said)
    said = [
        generate(vanilla, None, other, tokenizer=tokenizer, progress=progress),
        generate(vanilla, unlearned, other, tokenizer=tokenizer, progress=progress),
    ]
    text += _side_by_side("About other things", concept.unrelated_questions, names[:2], said)
    file.write_text(text, encoding="utf-8")
    _say(text)


def _side_by_side(title: str, questions: Sequence[str], names: list[str], said: list[Any]) -> str:
    lines = [f"\n## {title}\n"]
    for i, question in enumerate(questions):
        lines.append(f"**{question}**\n")
        for name, answers in zip(names, said, strict=False):
            one_line = " ".join(answers[i].split())
            lines.append(f"- {name:9} {one_line}")
        lines.append("")
    return "\n".join(lines) + "\n"


def _write(result: SweepResult, folder: Path) -> None:
    result.save(folder / "sweep.krs", overwrite=True)
    result.to_frame().to_csv(folder / "krs.csv", index=False)
    result.plot().figure.savefig(folder / "fig1.png", dpi=150)


def _say(text: str) -> None:
    from tqdm import tqdm

    tqdm.write(text)
