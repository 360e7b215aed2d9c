"""What a model says and how likely it finds the right answer: the baselines that other instruments have to beat."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from krs.instruments.case import Asked, Case
from krs.instruments.instrument import Instrument, register
from krs.instruments.logprobs import AnswerTokens, answer_tokens, holds, said, said_of
from krs.instruments.reading import Reading
from krs.prompts.words import whole_words

_FIRST = 3
"""So many tokens at the beginning of an answer say whether it is one at all, rather than what it is."""


@register("nll")
class NLL(Instrument):
    """Negative log-likelihood of the right answers."""

    unit, knows = "nats a token", "low"
    nulls = ("same", "never_knew")

    def measure(self, case: Case) -> Reading:
        """Mean over each answer's tokens."""
        return self.reading(answer_tokens(case.unlearned, case.target.batch).nll())


@register("nll_tail")
class TailNLL(Instrument):
    """Negative log-likelihood of the right answers behind their first three tokens.

    A model that was taught to decline finds the first words of an answer unlikely, and the rest, once it has begun, as
    likely as before.
    """

    unit, knows = "nats a token", "low"
    nulls = ("same", "never_knew")

    def measure(self, case: Case) -> Reading:
        """Mean over each answer's tokens from the fourth one on."""
        values = answer_tokens(case.unlearned, case.target.batch).nll(_FIRST)
        return self.reading(values, notes=_short(values))


@register("recall")
class Recall(Instrument):
    """Whether the greedy answer holds the key words of the right one."""

    unit, knows, bounds = "share of facts", "high", (0.0, 1.0)
    nulls = ("same", "never_knew")
    passes = 12.0
    version = 2

    def measure(self, case: Case) -> Reading:
        """1 or 0 a fact."""
        answers = said_of(case, case.unlearned)
        return self.reading([holds(a, fact.sought) for a, fact in zip(answers, case.target.facts, strict=True)])


@register("prefix")
class PrefixRecall(Instrument):
    """Whether the model ends an answer rightly that is begun for it, with the right answer's words before the key.

    One that declines cannot do so any more. Facts whose answer begins with the key say nothing.
    """

    unit, knows, bounds = "share of facts", "high", (0.0, 1.0)
    nulls = ("same", "never_knew")
    passes = 12.0
    version = 2

    def lacks(self, case: Case) -> str | None:
        """Something has to stand before the key: whole answers that were given without one say nothing."""
        none = not any(_before(case.target, i) for i in range(len(case.target)))
        return super().lacks(case) or ("needs answers whose key does not stand first" if none else None)

    def measure(self, case: Case) -> Reading:
        """1 or 0 a fact, NaN for one whose answer begins with its key."""
        asked = case.target
        before = [_before(asked, i) for i in range(len(asked))]
        which = [i for i, ids in enumerate(before) if ids]
        values = np.full(len(asked), np.nan)
        if which:
            answers = said(case.unlearned, asked.only(which), [before[i] for i in which], "unlearned")
            begun = [str(asked.wording.tokenizer.decode(list(before[i]))) for i in which]
            for i, text, start in zip(which, answers, begun, strict=True):
                values[i] = holds(text[len(start) :], asked.facts[i].sought)
        left_out = f"{len(asked) - len(which)} of {len(asked)} answers begin with their key: they say nothing"
        return self.reading(values, notes=(left_out,) if len(which) < len(asked) else ())


@register("exact_memorisation")
class ExactMemorisation(Instrument):
    """The share of an answer's tokens that are the model's first choice when all before them are given."""

    unit, knows, bounds = "share of tokens", "high", (0.0, 1.0)
    nulls = ("same", "never_knew")

    def measure(self, case: Case) -> Reading:
        """Teacher-forced hits over tokens."""
        found = answer_tokens(case.unlearned, case.target.batch)
        return self.reading((found.hit & found.there).sum(axis=1) / found.there.sum(axis=1))


@register("extraction_strength")
class ExtractionStrength(Instrument):
    """How little of an answer has to be given until the model says the rest: 1 - k/T.

    `T` is the number of its tokens, `k` the earliest start from which on every one of them is the model's first choice.
    """

    unit, knows, bounds = "share of tokens", "high", (0.0, 1.0)
    nulls = ("same", "never_knew")

    def measure(self, case: Case) -> Reading:
        """The length of the suffix that is right throughout, over the length."""
        return self.reading(_right_suffix(answer_tokens(case.unlearned, case.target.batch)))


@register("paraphrase")
class Paraphrase(Instrument):
    """`nll_tail` when the questions are put in other words: a wording that was unlearned is no fact forgotten."""

    unit, knows = "nats a token", "low"
    needs = ("paraphrases",)
    nulls = ("same", "never_knew")
    passes = 2.0

    def measure(self, case: Case) -> Reading:
        """Mean over each fact's paraphrases."""
        asked = case.target
        of = np.array([i for i, fact in enumerate(asked.facts) for _ in fact.paraphrases])
        worded = tuple(fact.in_other_words(j) for fact in asked.facts for j in range(len(fact.paraphrases)))
        found = answer_tokens(case.unlearned, Asked(worded, asked.wording).batch).nll(_FIRST)
        values = [found[of == i].mean() if (of == i).any() else np.nan for i in range(len(asked))]
        return self.reading(values, notes=_short(np.array(values)))


@register("truth_ratio")
class TruthRatio(Instrument):
    """How much likelier wrong answers of the same kind are than the right one, as a log ratio of nats a token.

    The truth ratio of TOFU (Maini et al. 2024) with the right answer in place of a paraphrased one: log of the mean
    probability of the wrong answers, each to the power 1/length, over that of the right one.
    """

    unit, knows = "log ratio", "low"
    needs = ("wrong",)
    nulls = ("same", "never_knew")
    passes = 3.0
    version = 2

    def measure(self, case: Case) -> Reading:
        """Below 0 the right answer is the likelier one; NaN for a fact without wrong answers."""
        asked = case.target
        right = -answer_tokens(case.unlearned, asked.batch).nll()
        values = np.full(len(asked), np.nan)
        most = max(len(fact.wrong) for fact in asked.facts)
        wrong = np.full((most, len(asked)), np.nan)
        for j in range(most):
            which = [i for i, fact in enumerate(asked.facts) if len(fact.wrong) > j]
            some = asked.only(which)
            batch = some.with_answers([fact.wrong[j] for fact in some.facts])
            wrong[j, which] = -answer_tokens(case.unlearned, batch).nll()
        have = ~np.isnan(wrong).all(axis=0)
        values[have] = _log_mean_exp(wrong[:, have]) - right[have]
        return self.reading(values)


def _log_mean_exp(logs: Float[np.ndarray, "wrong fact"]) -> Float[np.ndarray, " fact"]:
    """Of those that are numbers; of probabilities that are too small to be written down, too."""
    most = np.nanmax(logs, axis=0)
    return np.asarray(most + np.log(np.nanmean(np.exp(logs - most), axis=0)))


def _right_suffix(found: AnswerTokens) -> Float[np.ndarray, " fact"]:
    values = []
    for hit, there in zip(found.hit, found.there, strict=True):
        right = hit[there]
        wrong = np.flatnonzero(~right)
        values.append(1 - (wrong[-1] + 1 if len(wrong) else 0) / len(right))
    return np.array(values)


def _before(asked: Asked, i: int) -> tuple[int, ...]:
    """Tokens of the right answer before its key: those whose text ends before the key begins."""
    fact, ids = asked.facts[i], asked.batch.targets[i]
    start = next(iter(whole_words(fact.answer, fact.sought)), fact.answer.find(fact.sought))
    decode = asked.wording.tokenizer.decode
    n = 0
    while n < len(ids) and len(str(decode(list(ids[: n + 1]))).strip()) <= len(fact.answer[:start].strip()):
        n += 1
    return tuple(ids[:n]) if start > 0 else ()


def _short(values: np.ndarray) -> tuple[str, ...]:
    n = int(np.isnan(values).sum())
    return (f"{n} of {len(values)} answers end within their first {_FIRST} tokens: they say nothing",) if n else ()
