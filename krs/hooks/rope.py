"""Rotary embeddings whose factors follow the longest sequence of a batch.

`transformers` computes the factors of the RoPE types `dynamic` and `longrope` from the largest position that a forward
has, for all its rows; and with `dynamic` they stay as large as the longest sequence so far. So a prompt's logits
depend on its neighbours in the batch and on what the model saw before.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from krs.hooks.interrupts import interrupt_deferred


def following(model: nn.Module) -> list[nn.Module]:
    """The rotary embeddings of a model whose factors follow the longest sequence; none in most models.

    >>> import krs
    >>> model, _ = krs.load("smollm2")
    >>> following(model)
    []
    """
    return [module for module in model.modules() if any(map(_follows, _types(module)))]


def start_afresh(model: nn.Module) -> None:
    """Forget the longest sequence so far: the next forward has the factors that it has in a model just loaded."""
    for module in following(model):
        for prefix in _prefixes(module):
            original = getattr(module, f"{prefix}original_inv_freq", None)
            current = getattr(module, f"{prefix}inv_freq", None)
            if isinstance(original, Tensor) and isinstance(current, Tensor):
                module._buffers[f"{prefix}inv_freq"] = original.to(current.device).clone()
            if hasattr(module, "original_max_seq_len") and hasattr(module, f"{prefix}max_seq_len_cached"):
                setattr(module, f"{prefix}max_seq_len_cached", module.original_max_seq_len)


def switches_at(model: nn.Module) -> int | None:
    """The length after which a model's factors are others (`longrope`), if its own `generate` then starts again."""
    config: Any = getattr(model, "config", None)
    if type(model).__dict__.get("prepare_inputs_for_generation") is None:
        return None
    length = getattr(config, "original_max_position_embeddings", None)
    return int(length) if length and any("longrope" in _types(m) for m in following(model)) else None


@contextmanager
def own_factors(model: nn.Module) -> Iterator[None]:
    """Inside, a model's factors start afresh; afterwards they are what they were."""
    modules = following(model)
    before = [(m, dict(m._buffers), {k: v for k, v in vars(m).items() if not k.startswith("_")}) for m in modules]
    values = [[(v, v.clone()) for v in buffers.values() if v is not None] for _, buffers, _ in before]
    start_afresh(model)
    try:
        yield
    finally:
        with interrupt_deferred():
            for (module, buffers, plain), value in zip(before, values, strict=True):
                module._buffers.clear()
                module._buffers.update(buffers)
                vars(module).update(plain)
                for buffer, had in value:
                    if not torch.equal(buffer, had):  # longrope writes in place
                        buffer.copy_(had)


def _types(module: nn.Module) -> list[str]:
    """The RoPE types of a module: one, or one for each kind of layer."""
    given = getattr(module, "rope_type", None)
    return [t for t in (given.values() if isinstance(given, dict) else [given]) if isinstance(t, str)]


def _follows(rope_type: str) -> bool:
    return "dynamic" in rope_type or rope_type == "longrope"


def _prefixes(module: nn.Module) -> list[str]:
    given = getattr(module, "rope_type", None)
    return [f"{kind}_" for kind in given] if isinstance(given, dict) else [""]
