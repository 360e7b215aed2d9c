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
    vocabulary = vocabulary_of(model) if entries is None else entries
    for what, rows in (("answer", answers or ()), ("prompt", prompts)):
        for i, row in enumerate(rows):
            if bad := [t for t in row if not 0 <= t < vocabulary]:
                raise KrsError(
                    f"{what} {i} has the token id {bad[0]}, but the model's vocabulary has {vocabulary} entries: is "
                    "the tokenizer another model's?"
                )
    context = context_of(model)
    for i, row in enumerate(prompts):
        if context is not None and len(row) + n_tokens > context:
            raise KrsError(
                f"prompt {i} has {len(row)} tokens; with n_tokens={n_tokens} it is longer than the model's context of "
                f"{context}: shorten it or lower n_tokens"
            )


def context_of(model: nn.Module) -> int | None:
    """How many tokens a model takes; `None` where its configuration does not say.

    Dynamic rotary factors are made to go beyond the length that the configuration names.
    """
    config: Any = model.config
    length = next((int(getattr(config, n)) for n in _CONTEXT if getattr(config, n, None)), None)
    ropes = _ropes(getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None))
    if length is None or not ropes:
        return length
    dynamic = [float(r.get("factor", 1.0)) for r in ropes if r.get("rope_type", r.get("type")) == "dynamic"]
    return int(length * min(dynamic)) if len(dynamic) == len(ropes) else length


def _ropes(given: Any) -> list[dict[str, Any]]:
    """The parameters of the rotary embeddings that bound the context.

    Of some models (Gemma 3) each type of layer has its own; a sliding window is as long in any text.
    """
    if not isinstance(given, dict):
        return []
    by_type = {kind: one for kind, one in given.items() if isinstance(one, dict)}
    return [one for kind, one in by_type.items() if kind != "sliding_attention"] or [given]
