"""How two models go on with the same texts: the paper's concept files have such halves (`text_completion`)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import nn

from krs._typing import Tokenizer
from krs.errors import KrsError
from krs.generation.greedy import eos_ids, pad_ids
from krs.hooks.context import plain_numerics
from krs.metrics.answers import checkpoint_file, some
from krs.metrics.answers_result import Answers
from krs.metrics.asking import Asked, How, ask
from krs.metrics.bleu import REFUSALS, BleuKind, check_kind, check_refusals
from krs.models.given import Model
from krs.models.pair import Vocabulary
from krs.models.tokenizers import as_tokenizer
from krs.prompts import Ids, encode, listed
from krs.prompts.listed import check_text, whole
from krs.wording import counted, kind

Half: TypeAlias = str | tuple[str, str] | Sequence[str]
"""A text, which is parted in its middle; or its two parts, as `krs.data.Concept.completions` has them."""


@plain_numerics()
def text_completion(
    vanilla: Model,
    unlearned: Model,
    paragraphs: Iterable[Half],
    unrelated: Iterable[Half] | None = (),
    *,
    tokenizer: Tokenizer | str | Path | None = None,
    n_tokens: int = 50,
    bleu: BleuKind = "sacrebleu",
    refusals: Sequence[str] = REFUSALS,
    reuse: Answers | None = None,
    checkpoint: str | Path | None = None,
    vocabulary: Vocabulary = "same",
    progress: bool = True,
    device: str | torch.device = "auto",
    dtype: torch.dtype | str = "auto",
    device_map: Any = None,
) -> Answers:
    """Give both models the first half of each text, and compare how they go on: with each other and with the text.

    >>> import krs
    >>> vanilla, _ = krs.load("smollm2")
    >>> unlearned, _ = krs.load("smollm2")       # stands in for one that was unlearned
    >>> texts = ["The capital of France is Paris, and the capital of Italy is Rome."]
    >>> found = krs.metrics.text_completion(vanilla, unlearned, texts, progress=False)
    >>> found.frame.question[0], found.frame.text[0]
    ('The capital of France is Paris,', ' and the capital of Italy is Rome.')
    >>> float(found.table.bleu_text["target"]) == float(found.table.bleu_text_vanilla["target"])
    True

    Texts are taken as they are, without a chat template. A text is parted before the middle one of its words; the
    second part is what the tokens of the whole text have beyond those of the first, so that both together are the
    text's own tokens. Each model goes on greedily for as many tokens as the text does, `n_tokens` at most, and is
    compared with as many of the text.

    Args:
        vanilla: as in `krs.sweep`. Both models' continuations end where this one's do.
        unlearned: as in `krs.sweep`.
        paragraphs: texts about what was unlearned, or pairs of first and second half, such as `concept.completions`.
        unrelated: the same about other things.
        tokenizer: or the name of a model that has it; looked for beside the models' checkpoints if not given.
        n_tokens: at most so many tokens of each text are predicted.
        bleu: `"sacrebleu"` or `"paper-code"`, see `krs.metrics.bleu.bleu`; against the text, the text is the reference.
        refusals: regular expressions that make a continuation a refusal.
        reuse: an earlier result of the same vanilla model and texts, whose vanilla continuations are taken over.
        checkpoint: a file for what has been said so far, as in `krs.metrics.answers`.
        vocabulary: as in `krs.sweep`.
        progress: show bars.
        device: where models given by name go, as in `krs.sweep`; `dtype` and `device_map` likewise.
        dtype: see `device`.
        device_map: see `device`.

    Raises `KrsError` before anything runs for a pair that does not belong together, for texts of fewer than two words,
    and for bad settings. An interrupted call raises what interrupted it as `krs.metrics.answers` does.
    """
    check_kind(bleu)
    if whole(n_tokens, "n_tokens") < 1:
        raise KrsError(f"n_tokens={n_tokens}: at least one token has to be generated")
    file = checkpoint_file(checkpoint)
    halves = {"target": _halves(paragraphs, "paragraphs")}
    if others := some(unrelated):
        halves["unrelated"] = _halves(others, "unrelated")
    refusals = check_refusals(refusals)
    parted = [text for side in halves.values() for text in side]

    def put(reader: Tokenizer, model: nn.Module) -> Asked:
        first, second = _ids(parted, reader, model, n_tokens)
        sides = tuple(side for side, texts in halves.items() for _ in texts)
        return Asked(sides, tuple(text for text, _ in parted), first, texts=second)

    how = How(n_tokens, bleu, list(refusals), reuse, file, progress)
    places: dict[str, Any] = {"device": device, "dtype": dtype, "device_map": device_map}
    return ask(
        vanilla, unlearned, put, how, reader=as_tokenizer(tokenizer), arguments={}, vocabulary=vocabulary, **places
    )


def _halves(given: Any, what: str) -> list[tuple[str, str]]:
    """For each text, its first half and all of it."""
    found = listed(given, what, "text")
    if not found:
        raise KrsError(f"{what} has no texts: give at least one")
    return [_half(text, f"{what} text {i}") for i, text in enumerate(found)]


def _half(text: Any, where: str) -> tuple[str, str]:
    if isinstance(text, tuple | list):
        if len(text) != 2 or not all(isinstance(part, str) and part.strip() for part in text):
            raise KrsError(f"{where} is no pair of texts: give its first and its second half, or the text alone")
        first, second = text
        between = "" if first[-1].isspace() or second[0].isspace() else " "
        check_text(first + second, where)
        return first.rstrip(), first + between + second
    if not isinstance(text, str):
        raise KrsError(f"{where} is {kind(text)}: give a text, or its two halves")
    check_text(text, where)
    words = list(re.finditer(r"\S+", text))
    if len(words) < 2:
        raise KrsError(f"{where} has {counted(len(words), 'word')}, so there is no second half: leave it out")
    return text[: words[len(words) // 2].start()].rstrip(), text


def _ids(
    parted: Sequence[tuple[str, str]], reader: Tokenizer, model: nn.Module, n_tokens: int
) -> tuple[tuple[Ids, ...], tuple[Ids, ...]]:
    """The tokens of each text in two: as far as they are those of its first half, and the others."""
    options: dict[str, Any] = {"pads": pad_ids(model), "ends": eos_ids(model)}
    before, whole = (encode([pair[i] for pair in parted], reader, **options) for i in (0, 1))
    first, second = [], []
    for i, (start, ids) in enumerate(zip(before, whole, strict=True)):
        n = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(start, ids, strict=False)))
        if n in (0, len(ids)):
            raise KrsError(f"text {i} has no two halves in tokens ({parted[i][1][:40]!r}): leave it out")
        first.append(ids[:n])
        second.append(ids[n:][:n_tokens])
    return tuple(first), tuple(second)
