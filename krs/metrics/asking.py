"""Two models are given the same prompts, and what they say is compared: what `answers` and `text_completion` share."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from krs._typing import DataFrame, Tokenizer
from krs.errors import KrsError
from krs.generation.batching import neighbours_matter
from krs.generation.fits import check_fits
from krs.generation.forward import accepted, device_of, logits_at
from krs.generation.greedy import eos_ids, greedy
from krs.hooks.anatomy import Anatomy
from krs.hooks.finite import is_finite, refuse_not_finite
from krs.metrics import answers_file
from krs.metrics.answers_format import OF_TEXTS
from krs.metrics.answers_result import MEANS, Answers
from krs.metrics.bleu import BleuKind, against, bleu, distinct, is_refusal, signature
from krs.models.given import Model, load_given
from krs.models.lineage import check_roles
from krs.models.pair import Vocabulary, check_pair, shared_ids, shared_rows
from krs.models.provenance import NUMBERS, as_json, describe_model, now, versions
from krs.models.tokenizers import find_tokenizer
from krs.models.unloaded import unloaded
from krs.progress import going_on
from krs.prompts import Ids, decode, next_token_batch
from krs.prompts.notes import answer_notes, show

_ROWS = 8


@dataclass(frozen=True)
class Asked:
    """What both models are given.

    Attributes:
        sides: of each prompt, target or unrelated.
        shown: each prompt as a table shows it.
        prompts: their token ids.
        notes: what is most likely not meant about them.
        bare: how many are bare text that a chat model would have got through its template.
        texts: how each prompt's text goes on, token ids, where the models are to go on with it.
    """

    sides: tuple[str, ...]
    shown: tuple[str, ...]
    prompts: tuple[Ids, ...]
    notes: tuple[str, ...] = ()
    bare: int = 0
    texts: tuple[Ids, ...] | None = None

    def cut(self, answers: Sequence[Ids]) -> tuple[Ids, ...]:
        """Answers, each no longer than its prompt's text goes on; whole where there is none."""
        if self.texts is None:
            return tuple(answers)
        return tuple(ids[: len(text)] for ids, text in zip(answers, self.texts, strict=False))

    def digest(self) -> str:
        """SHA-256 of all ids."""
        told: Any = self.prompts if self.texts is None else (self.prompts, self.texts)
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()


@dataclass(frozen=True)
class How:
    """How they are asked; each as in `krs.metrics.answers`."""

    n_tokens: int
    bleu: BleuKind
    refusals: list[str]
    reuse: Answers | None
    file: Path | None
    progress: bool


def _refuse_another(
    given: Mapping[str, Model],
    put: Callable[[Tokenizer, nn.Module], Asked],
    how: How,
    reader: Tokenizer | None,
    as_stored: bool,
) -> None:
    """Raise `KrsError` for a checkpoint of other answers, as far as that is known before models are loaded."""
    if how.file is None or not how.file.exists() or (models := unloaded(given, reader)) is None:
        return
    known = answers_file.load_answers(how.file).provenance
    if models.tokenizer is None or any("identity" not in known.get(side, {}) for side in given):
        return
    asked = put(models.tokenizer, models.models["vanilla"])
    ours = {"prompts_sha256": asked.digest(), "n_tokens": how.n_tokens, "ends": known.get("ends"), "numbers": NUMBERS}
    answers_file.earlier(how.file, ours | {"versions": versions()} | models.described(known, as_stored))


def ask(
    vanilla: Model,
    unlearned: Model,
    put: Callable[[Tokenizer, nn.Module], Asked],
    how: How,
    *,
    reader: Tokenizer | None,
    arguments: dict[str, Any],
    vocabulary: Vocabulary,
    device: str | torch.device,
    dtype: torch.dtype | str,
    device_map: Any,
) -> Answers:
    """Load both models, have them answer what `put` makes of the caller's texts, and compare; see `answers`."""
    given = {"vanilla": vanilla, "unlearned": unlearned}
    _refuse_another(given, put, how, reader, as_stored=dtype == "auto")
    models = load_given(given, device=device, dtype=dtype, device_map=device_map)
    bodies = check_pair(models[0][0], models[1][0], vocabulary)
    v, u = (body.model for body in bodies)
    n_ids, n_rows = shared_ids(v, u), shared_rows(v, u)
    reader = reader or models[0][1] or find_tokenizer(v) or models[1][1] or find_tokenizer(u)
    if reader is None:
        raise KrsError(
            "no tokenizer was found beside the models: pass tokenizer=, one that is loaded or the name of a model that "
            "has it"
        )
    ends, asked = eos_ids(v), put(reader, v)
    prompts, file, reuse = asked.prompts, how.file, how.reuse
    n_tokens = how.n_tokens if asked.texts is None else max(map(len, asked.texts))
    check_fits(prompts, n_tokens, v, None, n_ids)
    provenance = {
        "vanilla": describe_model(vanilla, v),
        "unlearned": describe_model(unlearned, u),
        "prompts_sha256": asked.digest(),
        "n_tokens": how.n_tokens,
        "ends": sorted(ends),
        "n_ids": n_ids,
        "bleu": signature(how.bleu),
        "refusals": how.refusals,
        "chat_template_kwargs": as_json(arguments),
        "numbers": NUMBERS,
        "versions": versions(),
        "made": now(),
    }
    notes = [*check_roles(v, u), *asked.notes]
    said = answers_file.earlier(file, provenance)
    left = {f"{name} answer": (len(said.get(name, ())), len(prompts)) for name in ("vanilla", "unlearned")}
    going_on(left, str(file), show=how.progress)
    if reuse is not None and len(said.get("vanilla", ())) < len(prompts):
        said["vanilla"] = max(said.get("vanilla", ()), answers_file.reused(reuse, provenance), key=len)
        provenance["vanilla_answers"] = {k: reuse.provenance.get(k) for k in ("made", "versions")} | {"reused": True}
    rows = _rows(asked, reader)

    def so_far() -> Answers:
        cut = {name: asked.cut(found) for name, found in said.items()}
        for name, found in cut.items():
            for row, answer in zip(rows, found, strict=False):  # of some batches, where it was interrupted
                row[name] = decode(answer, reader, skip_special_tokens=True)
        ids = {name: list(found) for name, found in cut.items()}
        return Answers(_frame(rows, how.bleu, how.refusals), ids, provenance)

    saved = answers_file.SavedAnswers(file, said, len(prompts), so_far)
    try:
        for name, model in (("vanilla", v), ("unlearned", u)):
            if len(done := said.get(name, ())) < len(prompts):
                options: dict[str, Any] = {"doing": f"answers ({name})", "side": name, "n_ids": n_ids, "eos": ends}
                options |= {"done": done, "kept": partial(saved.note, name)}
                greedy(model, prompts, n_tokens, progress=how.progress, **options)
        notes += answer_notes(said["vanilla"], reader, ends, asked.bare, "vanilla answers")
        provenance["notes"] = notes
        show([f"note: {note}" for note in notes], how.progress)
        of = {"nll": asked.cut(said["vanilla"])} | ({} if asked.texts is None else {"nll_text": asked.texts})
        nll = {
            name + suffix: _nll(body, side, prompts, ids, n_rows)
            for name, ids in of.items()
            for suffix, body, side in (("_vanilla", bodies[0], "vanilla"), ("", bodies[1], "unlearned"))
        }
    except BaseException as stop:
        if said:
            answers_file.leave(so_far(), file, stop)
        raise
    found = so_far()
    found = replace(found, frame=found.frame.assign(**nll))
    answers_file.finish(found, file)
    return found


def _rows(asked: Asked, reader: Tokenizer) -> list[dict[str, str]]:
    rows = [{"side": side, "question": text} for side, text in zip(asked.sides, asked.shown, strict=True)]
    for row, text in zip(rows, asked.texts or (), strict=False):
        row["text"] = decode(text, reader, skip_special_tokens=True)
    return rows


def _frame(rows: list[dict[str, str]], kind: BleuKind, refusals: Sequence[str]) -> DataFrame:
    import pandas as pd

    of_texts = OF_TEXTS if "text" in rows[0] else ()

    def figures(row: dict[str, str]) -> dict[str, Any]:
        before, after = row.get("vanilla"), row.get("unlearned")
        if before is None or after is None:  # not answered yet
            return {"vanilla": before, "unlearned": None} | dict.fromkeys((*MEANS, *of_texts), float("nan"))
        found: dict[str, Any] = {
            "bleu": bleu(before, after, kind),
            "ceiling": bleu(before, before, kind),
            "refusals": is_refusal(after, refusals),
            "refusals_vanilla": is_refusal(before, refusals),
            "distinct_2": distinct(after, 2),
            "distinct_2_vanilla": distinct(before, 2),
        }
        if of_texts:
            found["bleu_text"] = against(row["text"], after, kind)
            found["bleu_text_vanilla"] = against(row["text"], before, kind)
        return found

    later = [name for name in (*MEANS, *of_texts) if name.startswith("nll")]
    frame = pd.DataFrame([row | figures(row) for row in rows]).assign(**dict.fromkeys(later[::-1], float("nan")))
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
