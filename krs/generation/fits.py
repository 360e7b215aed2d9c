"""Whether prompts fit a model: its vocabulary, its context. Asked before it runs."""

from __future__ import annotations

from typing import Any

from torch import nn

from krs.errors import KrsError
from krs.models.pair import vocabulary_of
from krs.prompts import Ids

_CONTEXT = ("max_position_embeddings", "max_seq_len", "max_sequence_length", "n_positions")


def check_fits(
    prompts: tuple[Ids, ...],
    n_tokens: int,
    model: nn.Module,
    answers: tuple[Ids, ...] | None = None,
    entries: int | None = None,
) -> None:
    """Raise `KrsError` for ids outside the vocabulary (its first `entries`) and prompts longer than the context."""
    config: Any = model.config
    vocabulary = vocabulary_of(model) if entries is None else entries
    for what, rows in (("answer", answers or ()), ("prompt", prompts)):
        for i, row in enumerate(rows):
            if bad := [t for t in row if not 0 <= t < vocabulary]:
                raise KrsError(
                    f"{what} {i} has the token id {bad[0]}, but the model's vocabulary has {vocabulary} entries: is "
                    "the tokenizer another model's?"
                )
    context = _context(config)
    for i, row in enumerate(prompts):
        if context is not None and len(row) + n_tokens > context:
            raise KrsError(
                f"prompt {i} has {len(row)} tokens; with n_tokens={n_tokens} it is longer than the model's context of "
                f"{context}: shorten it or lower n_tokens"
            )


def _context(config: Any) -> int | None:
    """How many tokens a model takes; `None` where its configuration does not say.

    Dynamic rotary factors are made to go beyond the length that the configuration names.
    """
    length = next((int(getattr(config, n)) for n in _CONTEXT if getattr(config, n, None)), None)
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    if length is not None and isinstance(rope, dict) and rope.get("rope_type", rope.get("type")) == "dynamic":
        return int(length * float(rope.get("factor", 1.0)))
    return length
