"""How alike two answers are, and what else an answer shows: refusals and repetition."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias, get_args

from krs.errors import KrsError
from krs.prompts import check_strings

BleuKind: TypeAlias = Literal["sacrebleu", "paper-code"]

REFUSALS = (
    r"\bI (do not|don't|didn't) (know|have (any|the|specific|enough)?\s*(information|knowledge|answer|idea))",
    r"\bI('m| am) (sorry|afraid|unable|not (sure|able|aware|familiar|certain))",
    r"\bI (cannot|can't|can not|could not|couldn't|won't)\b",
    r"\bI have no (information|knowledge|idea|answer)",
    r"\bsomething I don't know",
    r"\bas an AI\b",
    r"\b(apologi[sz]e|my apologies)\b",
    r"\bno (information|idea|answer) (about|to|on|for|available)\b",
)
"""Regular expressions, case ignored; an answer in which one of them occurs is counted as a refusal."""


def check_kind(kind: str) -> None:
    """Raise `KrsError` unless `kind` is a way to compute BLEU."""
    if kind not in get_args(BleuKind):
        raise KrsError(f"bleu={kind!r}: choose {' or '.join(map(repr, get_args(BleuKind)))}")


def check_refusals(given: Any) -> list[str]:
    r"""Regular expressions as a list; raises `KrsError` for one that is none, which it numbers.

    >>> len(check_refusals([r"\bno idea\b"]))
    1
    """
    found = check_strings(given, "refusals", "regular expression")
    for i, pattern in enumerate(found):
        try:
            re.compile(pattern)
        except re.error as reason:
            raise KrsError(f"refusals has no regular expression as item {i} ({pattern!r}): {reason}") from None
    return found


def bleu(vanilla: str, unlearned: str, kind: BleuKind = "sacrebleu") -> float:
    """BLEU of an unlearned answer against the vanilla one, from 0 to 100.

    >>> round(bleu("Jane Austen wrote Emma.", "Jane Austen wrote Emma."), 1)
    100.0
    >>> round(bleu("Jane Austen", "Jane Austen", "paper-code"), 1)     # too short for 4-grams: its ceiling is not 100
    59.5

    Args:
        vanilla: the answer before unlearning.
        unlearned: the answer after it.
        kind: `"sacrebleu"`: sentence BLEU of sacrebleu with effective order; the vanilla answer is the reference.
            `"paper-code"`: what the released code computes: tokens between white space, up to 4-grams, the smoothing
            that NLTK calls method 3, and the *unlearned* answer as the reference.

    Two empty answers are the same answer: 100 in either kind. An empty one against any other gives 0.
    """
    check_kind(kind)
    if not vanilla.strip() and not unlearned.strip():
        return 100.0
    if kind == "paper-code":
        return 100 * _smoothed(hypothesis=vanilla.split(), reference=unlearned.split())
    if not vanilla.strip():
        return 0.0
    return min(float(_sacrebleu().sentence_score(unlearned, [vanilla]).score), 100.0)  # it adds up to 100 + 4e-14


def against(text: str, said: str, kind: BleuKind = "sacrebleu") -> float:
    """BLEU of what a model said against a text, which is the reference in either kind.

    >>> round(against("Jane Austen wrote Emma.", "Jane Austen wrote Emma."), 1)
    100.0
    """
    return bleu(said, text, kind) if kind == "paper-code" else bleu(text, said, kind)


def signature(kind: BleuKind) -> str:
    """What exactly was computed, as it should stand beside a figure."""
    if kind == "paper-code":
        return "paper-code|tok:whitespace|order:4|smooth:nltk-method3|ref:unlearned"
    metric = _sacrebleu()
    metric.sentence_score("a", ["a"])
    return f"sacrebleu|{metric.get_signature()}|ref:vanilla"


def is_refusal(answer: str, patterns: Sequence[str] = REFUSALS) -> bool:
    """Whether an answer declines to answer.

    >>> is_refusal("I'm sorry, I don't know the answer to that."), is_refusal("Paris.")
    (True, False)
    """
    said = answer.replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    return any(re.search(pattern, said, re.IGNORECASE) for pattern in patterns)


def distinct(answer: str, n: int) -> float:
    """Distinct n-grams over all n-grams of an answer's words; NaN for an answer with fewer than n words.

    1 means that nothing is said twice; a model that has collapsed into repetition is near 0. Li et al., 2016, here an
    answer at a time.

    >>> distinct("no no no no", 1), distinct("to be or not to be", 2)
    (0.25, 0.8)
    """
    words = answer.split()
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) if grams else math.nan


def _sacrebleu() -> Any:
    from sacrebleu.metrics import BLEU

    return BLEU(effective_order=True)


def _smoothed(hypothesis: list[str], reference: list[str]) -> float:
    """BLEU-4 in which the k-th order without a match counts as `1 / (2^k · number of n-grams)`."""
    matches = [_overlap(hypothesis, reference, n) for n in range(1, 5)]
    if not hypothesis or matches[0] == 0:
        return 0.0
    logs, missing = 0.0, 0
    for n, found in enumerate(matches, start=1):
        possible = max(1, len(hypothesis) - n + 1)
        missing += found == 0
        logs += math.log(found / possible if found else 1 / (2**missing * possible)) / 4
    brevity = min(0.0, 1 - len(reference) / len(hypothesis))
    return math.exp(brevity + logs)


def _overlap(hypothesis: list[str], reference: list[str], n: int) -> int:
    ours, theirs = (Counter(zip(*(words[i:] for i in range(n)), strict=False)) for words in (hypothesis, reference))
    return (ours & theirs).total()
