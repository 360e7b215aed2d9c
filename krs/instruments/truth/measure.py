"""What a model says about facts: does the key come, and how unlikely are the right answers?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from krs._typing import Tokenizer
from krs.data.concepts import as_chat
from krs.generation.batching import neighbours_matter
from krs.generation.forward import device_of, logits_at
from krs.generation.greedy import eos_ids, greedy
from krs.instruments.truth.facts import Fact
from krs.prompts import decode, encode, encode_answers, next_token_batch

AFTER = 3
"""Tokens of an answer that a refusal takes the place of; what follows them shows what is known."""
_N_TOKENS = 24
_ROWS = 8


@dataclass(frozen=True)
class FactMeasures:
    """Of one fact.

    Attributes:
        id: of the fact.
        said: the greedy answer to its question.
        recalled: whether that has the key.
        paraphrased: whether the greedy answer to a question in words that were never taught has it.
        nll: of the right answer, its end included, in nats a token.
        nll_after: of the answer without its first three tokens.
        nll_paraphrased: `nll` after the question in other words.

    What was not asked is `None`.
    """

    id: str
    said: str | None
    recalled: bool | None
    paraphrased: bool | None
    nll: float
    nll_after: float
    nll_paraphrased: float | None


def measure(
    model: nn.Module,
    tokenizer: Tokenizer,
    facts: Sequence[Fact],
    *,
    ask: bool = True,
    paraphrase: bool = True,
    n_tokens: int = _N_TOKENS,
) -> list[FactMeasures]:
    """Ask about facts; without `ask` only likelihoods are taken.

    Questions are chat messages where the tokenizer has a template, text otherwise.

    Args:
        model: in eval mode.
        tokenizer: of the model.
        facts: what is asked about.
        ask: take greedy answers too.
        paraphrase: ask in the first of the held-out wordings too.
        n_tokens: at most so many tokens an answer.
    """
    questions = [fact.question for fact in facts] + [fact.held_out[0] for fact in facts if paraphrase]
    nlls = token_nlls(model, tokenizer, questions, [fact.answer for fact in facts] * (1 + paraphrase))
    said = answers(model, tokenizer, questions, n_tokens) if ask else None
    found = []
    for i, fact in enumerate(facts):
        other = i + len(facts) if paraphrase else None
        found.append(
            FactMeasures(
                id=fact.id,
                said=None if said is None else said[i],
                recalled=None if said is None else fact.in_text(said[i]),
                paraphrased=None if said is None or other is None else fact.in_text(said[other]),
                nll=float(nlls[i].mean()),
                nll_after=float(nlls[i][AFTER:].mean()),
                nll_paraphrased=None if other is None else float(nlls[other].mean()),
            )
        )
    return found


def summary(found: Sequence[FactMeasures]) -> dict[str, float]:
    """Means over facts, of what was asked: `recall`, `paraphrased`, `nll`, `nll_after`, `nll_paraphrased`."""
    names = {"recall": "recalled"} | {n: n for n in ("paraphrased", "nll", "nll_after", "nll_paraphrased")}
    values = {name: [getattr(one, field) for one in found] for name, field in names.items()}
    return {name: fmean(map(float, every)) for name, every in values.items() if None not in every}


def prompts_of(tokenizer: Tokenizer, questions: Sequence[str]) -> list[Any]:
    """Questions as the model is asked them."""
    return as_chat(questions) if getattr(tokenizer, "chat_template", None) else list(questions)


def answers(model: nn.Module, tokenizer: Tokenizer, questions: Sequence[str], n_tokens: int = _N_TOKENS) -> list[str]:
    """Greedy answers as text."""
    ids = encode(prompts_of(tokenizer, questions), tokenizer)
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))  # alike in length, so that little is padded
    said = greedy(model, tuple(ids[i] for i in order), n_tokens, progress=False)
    by_place = dict(zip(order, said, strict=True))
    return [decode(by_place[i], tokenizer, skip_special_tokens=True) for i in range(len(ids))]


def token_nlls(model: nn.Module, tokenizer: Tokenizer, questions: Sequence[str], wanted: Sequence[str]) -> list[Tensor]:
    """Of each answer the negative log-likelihood of each of its tokens, the end that follows included, in nats."""
    prompts = encode(prompts_of(tokenizer, questions), tokenizer)
    ids = encode_answers(list(wanted), prompts, tokenizer, 10**6, eos_ids(model))
    batch = next_token_batch(prompts, ids)
    at_once = 1 if neighbours_matter(model, batch.tokens) else _ROWS
    found: list[Tensor] = []
    for start in range(0, len(batch), at_once):
        part = batch.rows(start, start + at_once)
        with torch.no_grad():
            logits = logits_at(model, part.inputs(device_of(model)), part.scored_index())
        for row, answer in zip(logits, ids[start : start + at_once], strict=True):
            scores = torch.log_softmax(row[: len(answer)].float(), dim=-1).cpu()
            found.append(-scores.gather(-1, torch.tensor(answer)[:, None])[:, 0])
    return found
