"""What two models say to the same questions: the paper's behaviour test (section 4, Fig. 2)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence, Sized
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from krs._typing import Axes, DataFrame, Tokenizer
from krs.errors import KrsError
from krs.generation.batching import neighbours_matter
from krs.generation.fits import check_fits
from krs.generation.forward import accepted, device_of, logits_at
from krs.generation.greedy import eos_ids, greedy, pad_ids
from krs.hooks.anatomy import Anatomy
from krs.hooks.context import plain_numerics
from krs.hooks.finite import is_finite, refuse_not_finite
from krs.metrics import answers_file
from krs.metrics.bleu import REFUSALS, BleuKind, bleu, check_kind, distinct, is_refusal, signature
from krs.models.given import Model, load_given
from krs.models.lineage import check_roles
from krs.models.pair import Vocabulary, check_pair, shared_ids, shared_rows
from krs.models.provenance import NUMBERS, as_json, describe_model, now, versions
from krs.models.tokenizers import as_tokenizer, find_tokenizer
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
from krs.writing import check_writable

SIDES = ("target", "unrelated")
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
    def complete(self) -> bool:
        """Whether both models have answered all (not so for the `partial` of a call that was interrupted)."""
        return len(self.token_ids.get("unlearned", ())) == len(self.frame)

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
        answers_file.save(self, path)

    def __repr__(self) -> str:
        shown = self.table.to_string(float_format=lambda x: f"{x:.2f}")
        return "\n".join([f"Answers ({self.provenance['bleu']})", shown, *(f"note: {n}" for n in self.notes)])

    def _repr_html_(self) -> str:
        from html import escape

        notes = "".join(f"<p><em>note: {escape(n)}</em></p>" for n in self.notes)
        return str(self.table.to_html(float_format=lambda x: f"{x:.2f}", border=0)) + notes


@plain_numerics()
def answers(
    vanilla: Model,
    unlearned: Model,
    target: Prompts,
    unrelated: Prompts = (),
    *,
    tokenizer: Tokenizer | str | Path | None = None,
    n_tokens: int = 30,
    bleu: BleuKind = "sacrebleu",
    refusals: Sequence[str] = REFUSALS,
    reuse: Answers | None = None,
    checkpoint: str | Path | None = None,
    vocabulary: Vocabulary = "same",
    progress: bool = True,
    chat_template_kwargs: dict[str, Any] | None = None,
    device: str | torch.device = "auto",
    dtype: torch.dtype | str = "auto",
    device_map: Any = None,
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
        tokenizer: or the name of a model that has it; looked for beside the models' checkpoints if not given.
        n_tokens: at most so many tokens an answer.
        bleu: `"sacrebleu"` or `"paper-code"`, see `krs.metrics.bleu.bleu`.
        refusals: regular expressions that make an answer a refusal.
        reuse: an earlier result of the same vanilla model and prompts, whose vanilla answers are taken over.
        checkpoint: a file for the answers so far, written every half minute, after each model has answered and on
            Ctrl-C; called again with the same models, prompts and length, the call goes on from it, and gives what it
            would have given. It holds the result in the end.
        vocabulary: as in `krs.sweep`.
        progress: show bars.
        chat_template_kwargs: as in `krs.sweep`.
        device: where models given by name go, as in `krs.sweep`; `dtype` and `device_map` likewise.
        dtype: see `device`.
        device_map: see `device`.

    What is most likely not meant is in the result's `notes`, as in `krs.sweep`.

    Raises `KrsError` before anything runs for a pair that does not belong together, and for bad prompts or settings.
    An interrupted call raises what interrupted it with the attribute `partial`, the `Answers` there are (those of whole
    batches of prompts), of which `reuse=` takes the vanilla model's.
    """
    check_kind(bleu)
    file = None if checkpoint is None else Path(checkpoint)
    if file is not None:
        check_writable(file, "checkpoint")
    asked = {"target": check_prompts(target, "target")}
    if others := _some(unrelated):
        asked["unrelated"] = check_prompts(others, "unrelated")
    refusals = check_strings(refusals, "refusals", "regular expression")
    every = [prompt for side in asked.values() for prompt in side]
    arguments = check_template_arguments(chat_template_kwargs, any(map(is_chat, every)))
    reader = as_tokenizer(tokenizer)
    models = load_given({"vanilla": vanilla, "unlearned": unlearned}, device=device, dtype=dtype, device_map=device_map)
    bodies = check_pair(models[0][0], models[1][0], vocabulary)
    v, u = (body.model for body in bodies)
    n_ids, n_rows = shared_ids(v, u), shared_rows(v, u)
    reader = reader or models[0][1] or find_tokenizer(v) or models[1][1] or find_tokenizer(u)
    if reader is None:
        raise KrsError(
            "no tokenizer was found beside the models: pass tokenizer=, one that is loaded or the name of a model that "
            "has it"
        )
    ends = eos_ids(v)
    prompts = encode(every, with_template_arguments(reader, arguments), pads=pad_ids(v), ends=ends)
    check_fits(prompts, n_tokens, v, None, n_ids)
    provenance = {
        "vanilla": describe_model(vanilla, v),
        "unlearned": describe_model(unlearned, u),
        "prompts_sha256": hashlib.sha256(json.dumps(prompts).encode()).hexdigest(),
        "n_tokens": n_tokens,
        "ends": sorted(ends),
        "bleu": signature(bleu),
        "refusals": list(refusals),
        "chat_template_kwargs": as_json(arguments),
        "numbers": NUMBERS,
        "versions": versions(),
        "made": now(),
    }
    notes = check_roles(v, u) + prompt_notes(every, reader, arguments)
    said = answers_file.earlier(file, provenance)
    if reuse is not None and len(said.get("vanilla", ())) < len(every):
        said["vanilla"] = max(said.get("vanilla", ()), answers_file.reused(reuse, provenance), key=len)
        provenance["vanilla_answers"] = {k: reuse.provenance.get(k) for k in ("made", "versions")} | {"reused": True}
    rows = [{"side": side, "question": _shown(p, reader)} for side in asked for p in asked[side]]

    def so_far() -> Answers:
        for name, found in said.items():
            for row, answer in zip(rows, found, strict=False):  # of some batches, where it was interrupted
                row[name] = decode(answer, reader, skip_special_tokens=True)
        return Answers(_frame(rows, bleu, refusals), {name: list(found) for name, found in said.items()}, provenance)

    keeper = answers_file.Keeper(file, said, len(prompts), so_far)
    try:
        for name, model in (("vanilla", v), ("unlearned", u)):
            if len(done := said.get(name, ())) < len(prompts):
                options: dict[str, Any] = {"doing": f"answers ({name})", "side": name, "n_ids": n_ids, "eos": ends}
                options |= {"done": done, "kept": partial(keeper.note, name)}
                greedy(model, prompts, n_tokens, progress=progress, **options)
        notes += answer_notes(said["vanilla"], reader, ends, bare_texts(every, reader), "vanilla answers")
        provenance["notes"] = notes
        show([f"note: {note}" for note in notes], progress)
        parts = (("nll_vanilla", bodies[0], "vanilla"), ("nll", bodies[1], "unlearned"))
        nll = {name: _nll(body, side, prompts, said["vanilla"], n_rows) for name, body, side in parts}
    except BaseException as stop:
        if said:
            answers_file.leave(so_far(), file, stop)
        raise
    found = so_far()
    found = replace(found, frame=found.frame.assign(**nll))
    answers_file.finish(found, file)
    return found


def _frame(rows: list[dict[str, str]], kind: BleuKind, refusals: Sequence[str]) -> DataFrame:
    import pandas as pd

    def figures(row: dict[str, str]) -> dict[str, Any]:
        before, after = row.get("vanilla"), row.get("unlearned")
        if before is None or after is None:  # not answered yet
            return {"vanilla": before, "unlearned": None} | dict.fromkeys(_MEANS, float("nan"))
        return {
            "bleu": bleu(before, after, kind),
            "ceiling": bleu(before, before, kind),
            "refusals": is_refusal(after, refusals),
            "refusals_vanilla": is_refusal(before, refusals),
            "distinct_2": distinct(after, 2),
            "distinct_2_vanilla": distinct(before, 2),
        }

    frame = pd.DataFrame([row | figures(row) for row in rows]).assign(nll_vanilla=float("nan"), nll=float("nan"))
    missing = frame.unlearned.isna().any()
    return frame.astype(dict.fromkeys(("refusals", "refusals_vanilla"), float)) if missing else frame


def _nll(body: Anatomy, side: str, prompts: tuple[Ids, ...], said: tuple[Ids, ...], n_rows: int) -> list[float]:
    """Mean negative log-likelihood a token, in nats, that a model gives each answer, over `n_rows` vocabulary rows."""
    model, batch = body.model, next_token_batch(prompts, said)
    at_once = 1 if neighbours_matter(model, batch.tokens) else _ROWS
    found: list[float] = []
    for start in range(0, len(batch), at_once):
        part, answer = batch.rows(start, start + at_once), said[start : start + at_once]
        inputs = part.inputs(device_of(model))
        logits = logits_at(model, inputs, part.scored_index())[..., :n_rows]
        if not is_finite(logits):
            refuse_not_finite(model, side, accepted(model, inputs))
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
