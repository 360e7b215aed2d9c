"""What models say of given answers, token by token, and which questions they answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from unicodedata import normalize

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import nn

from krs.generation.batching import neighbours_matter
from krs.generation.forward import device_of, logits_at
from krs.generation.greedy import greedy
from krs.hooks.finite import is_finite, refuse_not_finite
from krs.instruments.case import Asked, Case
from krs.models.devices import summable
from krs.prompts import TokenBatch, encode
from krs.prompts.words import whole_words
from krs.wording import cut_off

_ROWS = 8
_MORE = 10
"""So many tokens more than the longest right answer has a model to come to the point."""


@dataclass(frozen=True, eq=False)
class AnswerTokens:
    """Teacher-forced answers.

    Attributes:
        logprob: nats, `[fact, token]`, NaN behind an answer's end.
        hit: whether the model's first choice is the answer's token; false behind an answer's end.
    """

    logprob: Float[np.ndarray, "fact token"]
    hit: Bool[np.ndarray, "fact token"]

    @property
    def there(self) -> Bool[np.ndarray, "fact token"]:
        """Where there is an answer's token."""
        return ~np.isnan(self.logprob)

    def nll(self, start: int = 0) -> Float[np.ndarray, " fact"]:
        """Mean nats a token from token `start` on; NaN for answers that end before."""
        return np.array([-row[~np.isnan(row)].mean() if (~np.isnan(row)).any() else np.nan for row in self.tail(start)])

    def tail(self, start: int) -> Float[np.ndarray, "fact token"]:
        """Log-probabilities from token `start` on."""
        return self.logprob[:, start:]


def answer_tokens(model: nn.Module, batch: TokenBatch, side: str = "unlearned") -> AnswerTokens:
    """Log-probabilities of a batch's target tokens, in float64.

    Raises `KrsError` for logits that are NaN or infinite.
    """
    shape = (len(batch), batch.n_scored)
    logprob, hit = np.full(shape, np.nan), np.zeros(shape, bool)
    for rows in together(batch, model):
        part = one_forward(model, batch.rows(rows.start, rows.stop), side)
        width = part.logprob.shape[1]
        logprob[rows, :width], hit[rows, :width] = part.logprob, part.hit
    return AnswerTokens(logprob, hit)


def together(batch: TokenBatch, *models: nn.Module) -> Iterator[slice]:
    """Prompts that may share a forward of these models: a few at a time, or one where neighbours matter."""
    alone = batch.alone or any(neighbours_matter(model, batch.tokens) for model in models)
    size = 1 if alone else _ROWS
    for start in range(0, len(batch), size):
        yield slice(start, min(start + size, len(batch)))


@torch.no_grad()
def one_forward(model: nn.Module, part: TokenBatch, side: str = "unlearned") -> AnswerTokens:
    """`answer_tokens` of prompts that share one forward; the model may be patched."""
    shape = (len(part), part.n_scored)
    logprob, hit = np.full(shape, np.nan), np.zeros(shape, bool)
    inputs = part.inputs(device_of(model))
    logits = logits_at(model, inputs, part.scored_index())
    if not is_finite(logits):
        refuse_not_finite(model, side, inputs)
    for row, (scored, targets) in enumerate(zip(logits, part.targets, strict=True)):
        values = summable(scored[: len(targets)].detach()).double()
        ids = torch.tensor(targets, device=values.device)[:, None]
        logprob[row, : len(targets)] = torch.log_softmax(values, -1).gather(-1, ids)[:, 0].cpu().numpy()
        hit[row, : len(targets)] = (values.argmax(-1) == ids[:, 0]).cpu().numpy()
    return AnswerTokens(logprob, hit)


def said(
    model: nn.Module, asked: Asked, begun: Sequence[tuple[int, ...]] | None = None, side: str = "the model"
) -> list[str]:
    """Greedy answers as text, without special tokens; `begun` are tokens that each answer begins with.

    An answer that was cut at the most tokens ends in an ellipsis. `side` is what messages call the model.
    """
    ids = encode(asked.prompts, asked.wording.tokenizer)
    starts = begun if begun is not None else [()] * len(ids)
    whole = tuple(p + tuple(b) for p, b in zip(ids, starts, strict=True))
    n_tokens = max(map(len, asked.batch.targets)) + _MORE
    found = greedy(model, whole, n_tokens, progress=False, side=side, eos=asked.wording.ends)
    decode = asked.wording.tokenizer.decode
    return [
        cut_off(str(decode([*start, *tokens], skip_special_tokens=True)), tokens, asked.wording.ends)
        for start, tokens in zip(starts, found, strict=True)
    ]


def said_of(case: Case, model: nn.Module) -> list[str]:
    """Greedy answers to a case's target; kept for the case."""
    found = case.found.setdefault(model, {})
    key = ("said", case.target)
    if key not in found:
        sides = {id(case.retain): "retain", id(case.unlearned): "unlearned", id(case.vanilla): "vanilla"}
        found[key] = said(model, case.target, side=sides.get(id(model), "the model"))
    answers: list[str] = found[key]
    return answers


def holds(text: str, key: str) -> bool:
    """Whether a text has the words sought in it, whatever their case, in all scripts.

    Accents count however they are written, as one character or as a letter and a mark.

    >>> holds("She was born in TARSK, I think.", "Tarsk"), holds("In Tarskberg.", "Tarsk"), holds("東京です。", "東京")
    (True, False, True)
    """
    return bool(whole_words(normalize("NFC", text), normalize("NFC", key), ignore_case=True))
