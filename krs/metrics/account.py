"""Which weights did it: the logit MSE of an unlearned model, shared out among its weights.

A weight put back alone undoes a local change only, so windows of restored weights do not add up. The integral of the
gradient along the line from the unlearned to the vanilla weights does (integrated gradients, Sundararajan et al.,
ICML 2017, on weights): it sums to the whole.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from krs._typing import Tokenizer
from krs.errors import KrsError, KrsWarning
from krs.generation.fits import check_fits
from krs.generation.forward import accepted, device_of, logits_at
from krs.generation.greedy import eos_ids, greedy, pad_ids
from krs.hooks.anatomy import Anatomy
from krs.hooks.context import plain_numerics
from krs.hooks.finite import is_finite, refuse_not_finite
from krs.metrics.account_result import Account, summed
from krs.metrics.logits import logit_mse, logit_power
from krs.metrics.score import SCORINGS
from krs.metrics.weight_path import WeightPath, outside_the_weights, weight_path
from krs.metrics.weight_units import Units, parts_of
from krs.models.lineage import check_roles
from krs.models.pair import Vocabulary, check_pair, dtype_of, shared_ids
from krs.models.provenance import NUMBERS, as_json, describe_model, machine, now, tokenizer_name, versions
from krs.models.resolve import resolve
from krs.progress import bar
from krs.prompts import (
    Answer,
    Prompts,
    Scoring,
    TokenBatch,
    answer_notes,
    bare_texts,
    check_prompts,
    check_template_arguments,
    encode,
    encode_answers,
    is_chat,
    next_token_batch,
    paper_code_batch,
    prompt_notes,
    with_template_arguments,
)
from krs.prompts.listed import whole
from krs.prompts.notes import show

_EXACT = 0.01
"""Completeness errors above this are warned of."""

_SAYS_THE_SAME = {"float64": 1e-4, "float32": 1e-4, "float16": 2.0**-5, "bfloat16": 2.0**-4}
"""Relative root-mean-square difference of logits up to which the copy computes what the model itself does."""


@plain_numerics()
def account(
    vanilla: nn.Module | str | Path,
    unlearned: nn.Module | str | Path,
    prompts: Prompts,
    *,
    answers: Iterable[Answer] | None = None,
    unrelated: Prompts | None = None,
    points: int = 6,
    tokenizer: Tokenizer | str | Path | None = None,
    n_tokens: int = 30,
    scoring: Scoring = "next-token",
    vocabulary: Vocabulary = "same",
    chat_template_kwargs: dict[str, Any] | None = None,
    progress: bool = True,
    device: str | torch.device = "auto",
    dtype: torch.dtype | str = "auto",
    device_map: Any = None,
) -> Account:
    """Share the unlearned model's logit MSE out among its weights: which components, layers and units did it.

    With `L(θ)` the logit MSE against the vanilla model at the scored tokens, as in `krs.sweep`, each weight's part is
    `-∫ ∂L/∂θ · (v-u) dt` along `θ(t) = u + t (v-u)`. The parts of all weights sum to `L(u)`, up to the error of the
    integration, which is always printed. Docs: account.

    >>> import krs
    >>> vanilla, tokenizer = krs.load("smollm2")
    >>> unlearned, _ = krs.load("smollm2")       # stands in for one that was unlearned: two matrices are disturbed
    >>> _ = unlearned.model.layers[20].mlp.up_proj.weight.data.mul_(1.2)
    >>> _ = unlearned.model.layers[29].mlp.down_proj.weight.data.mul_(1.1)
    >>> found = krs.account(vanilla, unlearned, ["Hogwarts is a"], n_tokens=3, progress=False)
    >>> sorted(found.by_component.nlargest(2).index), bool(found.error < 1e-3)
    (['keys', 'value_vectors'], True)

    Args:
        vanilla: as in `krs.sweep`.
        unlearned: as in `krs.sweep`. Both models are bit for bit what they were when this returns or raises.
        prompts: as in `krs.sweep`.
        answers: what is scored, one a prompt, instead of the vanilla model's own greedy answers.
        unrelated: prompts about other things, accounted for beside: what the same change of weights does to what
            should not have changed. The vanilla model's greedy answers to them are scored.
        points: of the Gauss-Legendre rule; each costs a forward and a backward pass a prompt.
        tokenizer: as in `krs.sweep`; so are `n_tokens`, `scoring`, `vocabulary` and `chat_template_kwargs`.
        n_tokens: see `tokenizer`.
        scoring: see `tokenizer`.
        vocabulary: see `tokenizer`.
        chat_template_kwargs: see `tokenizer`.
        progress: show bars.
        device: where models given by name go, as in `krs.sweep`; `dtype` and `device_map` likewise.
        dtype: see `device`.
        device_map: see `device`.

    A copy of the unlearned model walks the line, in fp32 where the models are narrower, so there are three models in
    memory, and one gradient of one weight at a time.

    Raises `KrsError` for bad input, before any model runs; for weights that are not in memory or are no fixed ones; for
    models that differ in more than their weights; and for logits or gradients that are NaN or infinite. A `KrsWarning`
    is given where the parts miss the whole by more than 1 %.
    """
    asked = {"target": check_prompts(prompts)}
    if unrelated is not None:
        asked["unrelated"] = check_prompts(unrelated, "unrelated")
    every = [prompt for side in asked.values() for prompt in side]
    arguments = check_template_arguments(chat_template_kwargs, any(map(is_chat, every)))
    _check_choices(scoring, n_tokens, points)
    where = {"device": device, "dtype": dtype, "device_map": device_map}
    pair = {"vanilla": vanilla, "unlearned": unlearned}
    (v_model, u_model), tokenizer = resolve(pair, every, tokenizer, scoring, vocabulary, **where)
    v, u = check_pair(v_model, u_model, vocabulary)
    ends, n_ids = eos_ids(v.model), shared_ids(v.model, u.model)
    bound = with_template_arguments(tokenizer, arguments)
    ids = {side: encode(some, bound, pads=pad_ids(v.model), ends=ends) for side, some in asked.items()}
    given = None if answers is None else encode_answers(answers, ids["target"], tokenizer, n_tokens, ends)
    for side, rows in ids.items():
        check_fits(rows, n_tokens, v.model, given if side == "target" else None, n_ids)
    notes = check_roles(v.model, u.model) + prompt_notes(every, tokenizer, arguments)
    path = weight_path(v, u)
    units = Units.of(v, path.weights)
    provenance = {
        "made_by": "krs.account",
        "time": now(),
        "n_tokens": n_tokens,
        "scoring": scoring,
        "vocabulary_rows": path.n_rows,
        "vanilla": describe_model(vanilla, v.model),
        "unlearned": describe_model(unlearned, u.model),
        "tokenizer": tokenizer_name(tokenizer),
        "numbers": NUMBERS,
        "chat_template_kwargs": as_json(arguments),
        "versions": versions(),
        "machine": machine(),
    }
    found: dict[str, Account] = {}
    for side in reversed(asked):
        said = given if side == "target" else None
        if said is None:
            said = greedy(v.model, ids[side], n_tokens, progress=progress, doing="vanilla answers", n_ids=n_ids)
        batch = next_token_batch(ids[side], said)
        if scoring == "paper-code":
            batch = paper_code_batch(ids[side], said, tokenizer, ends)
        of_prompts = answer_notes(said, tokenizer, ends, bare_texts(asked[side], tokenizer), "scored answers")
        numbers = _integrated(v, u, path, units, batch, points, progress)
        found[side] = Account(
            tuple(units.places),
            **numbers,
            points=points,
            tied=_is_tied(path),
            unrelated=found.get("unrelated"),
            token_ids=tuple(zip(ids[side], said, strict=True)),
            notes=(*notes, *of_prompts, *_look_at(numbers, points, side, dtype_of(u.model))),
            provenance=provenance,
        )
    show([f"note: {note}" for note in found["target"].notes], progress)
    return found["target"]


def _check_choices(scoring: str, n_tokens: int, points: int) -> None:
    if scoring not in SCORINGS:
        raise KrsError(f"scoring={scoring!r}: choose one of {', '.join(map(repr, SCORINGS))}")
    if whole(n_tokens, "n_tokens") < 1:
        raise KrsError(f"n_tokens={n_tokens}: at least one answer token has to be scored")
    if isinstance(points, bool) or not isinstance(points, int) or not 1 <= points <= 100:
        raise KrsError(f"points={points!r}: give a whole number from 1 to 100, such as 6")


def _integrated(
    v: Anatomy, u: Anatomy, path: WeightPath, units: Units, batch: TokenBatch, points: int, progress: bool
) -> dict[str, np.ndarray]:
    """The arrays of an account: each prompt's passes by themselves, so that no padding and no neighbour is in them."""
    rows = [batch.rows(i, i + 1) for i in range(len(batch))]
    n_scored = sum(len(scored) for scored in batch.scored)
    path.move(1.0)
    wanted = [path.logits(row).cpu() for row in rows]
    _check_copy("vanilla", v, u, path, rows, wanted)
    path.move(0.0)
    started = [path.logits(row).cpu() for row in rows]
    _check_copy("unlearned", v, u, path, rows, started)
    loss = np.array([float(logit_mse(a, b).sum()) / n_scored for a, b in zip(started, wanted, strict=True)])
    change = units.gathered({i: units.reduced(i, weight.change().square_()) for i, weight in enumerate(path.weights)})
    places, total = tuple(units.places), np.zeros(len(units.places))
    parts = np.zeros((len(rows), len(parts_of(places))))
    nodes, shares = np.polynomial.legendre.leggauss(points)
    moved = any(weight.held.requires_grad for weight in path.weights)
    with bar(points * len(rows), "account", show=progress, unit="step") as steps:
        for node, share in zip((nodes + 1) / 2, shares / 2, strict=True) if moved else ():
            path.move(float(node))
            for i, row in enumerate(rows):
                one = -share * _along(path, units, row, wanted[i], n_scored)
                if not np.isfinite(one).all():
                    raise KrsError(
                        f"a gradient is NaN or infinite on prompt {i}, at {node:.2f} of the line from the unlearned "
                        "weights to the vanilla ones: load both models in float32 or float64 (dtype=torch.float64)"
                    )
                total += one
                parts[i] += summed(places, one)
                steps.update()
    return {"unit_parts": total, "parts": parts, "change": change, "loss": loss}


def _along(path: WeightPath, units: Units, row: TokenBatch, wanted: Tensor, n_scored: int) -> np.ndarray:
    """`∂L/∂θ · (v-u)` of one prompt where the copy is now, a number a unit."""
    found: dict[int, Tensor] = {}

    def take(which: int, gradient: Tensor) -> None:
        one = units.reduced(which, path.weights[which].change().mul_(gradient))
        found[which] = found[which] + one if which in found else one

    with torch.enable_grad(), path.gradients(take):
        logits = path.logits(row)
        loss = (logits - wanted.to(logits.device)).square().mean(-1).sum() / n_scored
        loss.backward()
    return units.gathered(found)


def _check_copy(
    side: str, v: Anatomy, u: Anatomy, path: WeightPath, rows: list[TokenBatch], said: list[Tensor]
) -> None:
    """Raise `KrsError` unless the copy says what the model says whose weights it has: else these are not all of it."""
    body = v if side == "vanilla" else u
    own = logits_at(body.model, rows[0].inputs(device_of(body.model)), rows[0].scored_index())[0, :, : path.n_rows]
    for i, logits in [(0, own), *enumerate(said)]:  # a copy of a narrow model is wider, and may not overflow
        if not is_finite(logits):
            inputs = accepted(body.model, rows[i].inputs(device_of(body.model)))
            refuse_not_finite(body.model, side, inputs, f" on prompt {i}")
    off = float(logit_mse(own.cpu(), said[0]).mean() / logit_power(said[0]).mean().clamp(min=1e-300)) ** 0.5
    if not off <= _SAYS_THE_SAME.get(dtype_of(body.model), 1e-4):
        raise KrsError(
            f"the unlearned model with the weights of {side} does not say what {side} says (logits {off:.1g} apart), "
            f"so weights do not account for the difference: {outside_the_weights(v, u)}. Load both models the same "
            "way, without hooks"
        )


def _is_tied(path: WeightPath) -> bool:
    head, embedding = path.model.get_output_embeddings(), path.model.get_input_embeddings()  # type: ignore[operator]
    return head is not None and head.weight is embedding.weight


def _look_at(numbers: dict[str, np.ndarray], points: int, side: str, dtype: str) -> list[str]:
    """Notes on the numbers; parts that miss the whole are warned of."""
    whole, notes = float(numbers["loss"].sum()), []
    if whole == 0:
        return [f"the models say the same on the {side} prompts (logit MSE 0), so there is nothing to share out"]
    if dtype in ("bfloat16", "float16"):
        notes.append(f"the models are {dtype}, the line was walked in float32: a sweep's baseline rounds otherwise")
    if not abs(float(numbers["parts"].sum()) / whole - 1) <= _EXACT:
        note = (
            f"the parts of the {side} prompts sum to {float(numbers['parts'].sum()) / whole:.3f} of the logit MSE: "
            f"give more than points={points}, or load the models in a wider dtype"
        )
        warnings.warn(note, KrsWarning, stacklevel=4)
        notes.append(note)
    return notes
