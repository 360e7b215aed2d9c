"""What two models say to the same questions: the paper's behaviour test (section 4, Fig. 2)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from krs._typing import Axes, DataFrame, Tokenizer
from krs.errors import KrsError
from krs.generation.fits import check_fits
from krs.generation.forward import device_of, logits_at
from krs.generation.greedy import eos_ids, greedy, pad_ids
from krs.hooks.given import check_model
from krs.metrics.bleu import REFUSALS, BleuKind, bleu, check_kind, distinct, is_refusal, signature
from krs.models.lineage import check_roles
from krs.models.load import find_tokenizer, load
from krs.models.pair import check_pair
from krs.models.provenance import as_json, describe_model, now, versions
from krs.prompts import (
    Ids,
    Prompts,
    check_prompts,
    check_strings,
    check_template_arguments,
    decode,
    encode,
    is_chat,
    next_token_batch,
    with_template_arguments,
)
from krs.prompts.notes import answer_notes, bare_texts, prompt_notes, show

SIDES = ("target", "unrelated")
_FORMAT = 1
_ROWS = 8
_MEANS = ("bleu", "ceiling", "refusals", "refusals_vanilla", "distinct_2", "distinct_2_vanilla", "nll", "nll_vanilla")


@dataclass(frozen=True, repr=False)
class Answers:
    """What `answers` found.

    Attributes:
        frame: a row a question: `side` (target or unrelated), `question`, the two answers `vanilla` and `unlearned`,
            `bleu` (0 to 100), `ceiling` (the same BLEU of the vanilla answer against itself), and for each model
            whether it refused, its distinct 2-grams, and `nll`: nats a token that it gives the vanilla answer.
        token_ids: of the answers, `{model: [ids, …]}` in the frame's order.
        provenance: models, settings, versions, time.
    """

    frame: DataFrame
    token_ids: dict[str, list[Ids]]
    provenance: dict[str, Any]

    @property
    def table(self) -> DataFrame:
        """Means over questions, a row a side. Beside `bleu` stands its ceiling, and how the vanilla model fares."""
        means = self.frame.groupby("side", sort=False)[list(_MEANS)].mean()
        return means.assign(questions=self.frame.groupby("side", sort=False).size())

    @property
    def notes(self) -> list[str]:
        """What about the questions or the models is most likely not meant."""
        return list(self.provenance.get("notes", []))

    def plot(self, ax: Axes | None = None) -> Axes:
        """This pair as one point of the paper's Fig. 2; see `krs.plots.plot_tradeoff` for several."""
        from krs.plots import plot_tradeoff

        return plot_tradeoff({"": [self]}, ax)

    def save(self, path: str | Path) -> None:
        """Write everything to one JSON file; `load_answers` reads it."""
        said = {
            "krs_answers": _FORMAT,
            "rows": self.frame.astype(object).where(self.frame.notna(), None).to_dict(orient="records"),
            "token_ids": self.token_ids,
            "provenance": self.provenance,
        }
        Path(path).write_text(json.dumps(said, ensure_ascii=False, indent=1), encoding="utf-8")

    def __repr__(self) -> str:
        shown = self.table.to_string(float_format=lambda x: f"{x:.2f}")
        return "\n".join([f"Answers ({self.provenance['bleu']})", shown, *(f"note: {n}" for n in self.notes)])

    def _repr_html_(self) -> str:
        from html import escape

        notes = "".join(f"<p><em>note: {escape(n)}</em></p>" for n in self.notes)
        return str(self.table.to_html(float_format=lambda x: f"{x:.2f}", border=0)) + notes


def load_answers(path: str | Path) -> Answers:
    """Read what `Answers.save` wrote; raises `KrsError` for anything else."""
    import pandas as pd

    try:
        said = json.loads(Path(path).read_text(encoding="utf-8"))
        if said["krs_answers"] != _FORMAT:
            raise KrsError(f"{str(path)!r} was written by another version of krs (format {said['krs_answers']})")
        ids = {model: [tuple(row) for row in rows] for model, rows in said["token_ids"].items()}
        frame = pd.DataFrame(said["rows"])
        floats = ["bleu", "ceiling", "distinct_2", "distinct_2_vanilla", "nll", "nll_vanilla"]
        return Answers(frame.astype(dict.fromkeys(floats, float)), ids, said["provenance"])
    except OSError as reason:
        raise KrsError(f"cannot read {str(path)!r}: {reason.strerror}") from None
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
        raise KrsError(
            f"{str(path)!r} does not hold answers: give a file that Answers.save or krs answers wrote"
        ) from None


def answers(
    vanilla: nn.Module | str | Path,
    unlearned: nn.Module | str | Path,
    target: Prompts,
    unrelated: Prompts = (),
    *,
    tokenizer: Tokenizer | None = None,
    n_tokens: int = 30,
    bleu: BleuKind = "sacrebleu",
    refusals: Sequence[str] = REFUSALS,
    reuse: Answers | None = None,
    progress: bool = True,
    chat_template_kwargs: dict[str, Any] | None = None,
) -> Answers:
    """Ask both models the same questions and compare their greedy answers.

    >>> import krs
    >>> vanilla, _ = krs.load("smollm2")
    >>> unlearned, _ = krs.load("smollm2")       # stands in for one that was unlearned
    >>> found = krs.metrics.answers(vanilla, unlearned, target=["The capital of France is"], n_tokens=3, progress=False)
    >>> round(float(found.table.bleu["target"])), int(found.table.questions["target"])
    (100, 1)

    Args:
        vanilla: as in `krs.sweep`. Both models' answers end where this one's do.
        unlearned: as in `krs.sweep`.
        target: prompts about what was unlearned.
        unrelated: prompts about other things.
        tokenizer: looked for beside the vanilla model's checkpoint if not given.
        n_tokens: at most so many tokens an answer.
        bleu: `"sacrebleu"` or `"paper-code"`, see `krs.metrics.bleu.bleu`.
        refusals: regular expressions that make an answer a refusal.
        reuse: an earlier result of the same vanilla model and prompts, whose vanilla answers are taken over.
        progress: show bars.
        chat_template_kwargs: as in `krs.sweep`.

    What is most likely not meant is in the result's `notes`, as in `krs.sweep`.

    Raises `KrsError` before anything runs for a pair that does not belong together, and for bad prompts or settings.
    """
    check_kind(bleu)
    asked = {"target": check_prompts(target, "target")}
    if others := _some(unrelated):
        asked["unrelated"] = check_prompts(others, "unrelated")
    refusals = check_strings(refusals, "refusals", "regular expression")
    every = [prompt for side in asked.values() for prompt in side]
    arguments = check_template_arguments(chat_template_kwargs, any(map(is_chat, every)))
    for side, given in (("vanilla", vanilla), ("unlearned", unlearned)):
        if not isinstance(given, str | Path):
            check_model(given, side)
    models = [load(m) if isinstance(m, str | Path) else (m, None) for m in (vanilla, unlearned)]
    v, u = (body.model for body in check_pair(models[0][0], models[1][0]))
    reader = tokenizer or models[0][1] or find_tokenizer(v)
    if reader is None:
        raise KrsError(
            "no tokenizer was found beside the vanilla model: pass tokenizer=AutoTokenizer.from_pretrained(…)"
        )
    ends = eos_ids(v)
    prompts = encode(every, with_template_arguments(reader, arguments), pads=pad_ids(v), ends=ends)
    check_fits(prompts, n_tokens, v)
    provenance = {
        "vanilla": describe_model(vanilla, v),
        "unlearned": describe_model(unlearned, u),
        "prompts_sha256": hashlib.sha256(json.dumps(prompts).encode()).hexdigest(),
        "n_tokens": n_tokens,
        "bleu": signature(bleu),
        "refusals": refusals,
        "chat_template_kwargs": as_json(arguments),
        "versions": versions(),
        "made": now(),
    }
    said = {
        "vanilla": _vanilla_answers(v, prompts, n_tokens, reuse, provenance, progress),
        "unlearned": greedy(u, prompts, n_tokens, progress=progress, doing="answers (unlearned)", eos=ends),
    }
    notes = check_roles(v, u) + prompt_notes(every, reader, arguments)
    notes += answer_notes(said["vanilla"], reader, ends, bare_texts(every, reader), "vanilla answers")
    provenance["notes"] = notes
    show([f"note: {note}" for note in notes], progress)
    texts = {name: [decode(a, reader, skip_special_tokens=True) for a in rows] for name, rows in said.items()}
    rows = [
        {"side": side, "question": _shown(prompt, reader), "vanilla": before, "unlearned": after}
        for (side, prompt), before, after in zip(
            ((side, p) for side in asked for p in asked[side]), texts["vanilla"], texts["unlearned"], strict=True
        )
    ]
    nll = {name: _nll(model, prompts, said["vanilla"]) for name, model in (("nll_vanilla", v), ("nll", u))}
    frame = _frame(rows, bleu, refusals).assign(**nll)
    return Answers(frame, {name: list(found) for name, found in said.items()}, provenance)


def _vanilla_answers(
    v: nn.Module, prompts: tuple[Ids, ...], n_tokens: int, reuse: Answers | None, ours: dict[str, Any], progress: bool
) -> tuple[Ids, ...]:
    if reuse is None:
        return greedy(v, prompts, n_tokens, progress=progress, doing="answers (vanilla)")
    theirs = reuse.provenance
    same = {
        "prompts": theirs["prompts_sha256"] == ours["prompts_sha256"],
        "n_tokens": theirs["n_tokens"] == n_tokens,
        "vanilla model": theirs["vanilla"]["weights_sample_sha256"] == ours["vanilla"]["weights_sample_sha256"],
    }
    if differing := [what for what, equal in same.items() if not equal]:
        raise KrsError(f"reuse= is of other answers: {' and '.join(differing)} differ. Leave it out")
    return tuple(reuse.token_ids["vanilla"])


def _frame(rows: list[dict[str, str]], kind: BleuKind, refusals: Sequence[str]) -> DataFrame:
    import pandas as pd

    def figures(row: dict[str, str]) -> dict[str, Any]:
        before, after = row["vanilla"], row["unlearned"]
        return {
            "bleu": bleu(before, after, kind),
            "ceiling": bleu(before, before, kind),
            "refusals": is_refusal(after, refusals),
            "refusals_vanilla": is_refusal(before, refusals),
            "distinct_2": distinct(after, 2),
            "distinct_2_vanilla": distinct(before, 2),
        }

    return pd.DataFrame([row | figures(row) for row in rows])


def _nll(model: nn.Module, prompts: tuple[Ids, ...], said: tuple[Ids, ...]) -> list[float]:
    """Mean negative log-likelihood a token, in nats, that a model gives each answer."""
    batch = next_token_batch(prompts, said)
    found: list[float] = []
    for start in range(0, len(batch), _ROWS):
        part, answer = batch.rows(start, start + _ROWS), said[start : start + _ROWS]
        logits = logits_at(model, part.inputs(device_of(model)), part.scored_index())
        for row, ids in zip(logits, answer, strict=True):
            scores = torch.log_softmax(row[: len(ids)].float(), dim=-1)
            found.append(float(-scores.gather(-1, torch.tensor(ids, device=scores.device)[:, None]).mean()))
    return found


def _shown(prompt: Any, tokenizer: Tokenizer) -> str:
    """A prompt as a table should show it: its text, or what the last message says."""
    if isinstance(prompt, str):
        return prompt
    return str(prompt[-1]["content"]) if is_chat(prompt) else decode(prompt, tokenizer)


def _some(prompts: Any) -> Any:
    """Prompts that may be none; a generator is read."""
    if isinstance(prompts, Iterator):
        prompts = list(prompts)
    return prompts if not isinstance(prompts, Sized) or prompts else None
