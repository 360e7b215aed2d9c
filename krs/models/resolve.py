"""Two models and their tokenizer, from what a caller hands in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from krs._typing import Tokenizer
from krs.errors import KrsError
from krs.models.given import Model, load_given
from krs.models.pair import Vocabulary
from krs.models.tokenizers import as_tokenizer, find_tokenizer
from krs.prompts import Scoring, needs_tokenizer


def resolve(
    given: Mapping[str, Model],
    prompts: Sequence[Any],
    tokenizer: Tokenizer | str | Path | None,
    scoring: Scoring,
    vocabulary: Vocabulary = "same",
    **where: Any,
) -> tuple[list[Any], Tokenizer | None]:
    """Load what is given by name (`where` as in `load_given`); find a tokenizer if the (checked) prompts need one."""
    tokenizer = as_tokenizer(tokenizer)
    loaded = load_given(given, **where)
    models = [model for model, _ in loaded]
    tokenizers = [
        find_tokenizer(model) if tokenizer is None and not isinstance(one, str | Path) else beside
        for one, (model, beside) in zip(given.values(), loaded, strict=True)
    ]
    found = [t for t in tokenizers if t is not None]
    for other in found[1:] if tokenizer is None else ():
        _same_vocabulary(found[0], other, vocabulary)
    chosen = tokenizer if tokenizer is not None else (found[0] if found else None)
    if chosen is None and (needs_tokenizer(prompts) or scoring == "paper-code"):
        raise KrsError(
            "no tokenizer was found beside the models: pass tokenizer=AutoTokenizer.from_pretrained(…), or give the "
            "prompts as lists of token ids (and scoring='next-token')"
        )
    return models, chosen


def _same_vocabulary(a: Tokenizer, b: Tokenizer, vocabulary: Vocabulary) -> None:
    ours, theirs = a.get_vocab(), b.get_vocab()
    asked = ours.keys() & theirs.keys() if vocabulary == "shared" else ours.keys() | theirs.keys()
    if differing := [t for t in asked if ours.get(t) != theirs.get(t)]:
        raise KrsError(
            f"the tokenizers of vanilla and unlearned differ in {len(differing)} tokens (such as {min(differing)!r}): "
            "pass the one to use as tokenizer="
        )
