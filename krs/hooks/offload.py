"""Weights that `accelerate` keeps elsewhere and brings in when their module is called."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from krs.hooks.interrupts import interrupt_deferred


@contextmanager
def materialised(module: nn.Module) -> Iterator[None]:
    """Inside, a module's offloaded weights are in memory, loaded once by accelerate's own hooks.

    Those hooks load a weight whenever its module is called, and drop it afterwards; a sweep calls a layer's modules
    many times. Modules that are not offloaded are left alone.
    """
    before: list[tuple[nn.Module, Any, Any]] = []
    try:
        for part in module.modules():
            for hook in _offloading(part):
                before.append((part, hook, part.__dict__["forward"]))
                hook.pre_forward(part)
                object.__setattr__(part, "forward", part._old_forward)
        yield
    finally:
        with interrupt_deferred():
            for part, hook, had in reversed(before):
                object.__setattr__(part, "forward", had)
                hook.post_forward(part, None)


def is_offloaded(model: nn.Module) -> bool:
    """Whether accelerate keeps some of this model's weights elsewhere and brings them in when they are used."""
    return any(_offloading(part) for part in model.modules())


def _offloading(module: nn.Module) -> list[Any]:
    hook = getattr(module, "_hf_hook", None)
    return [h for h in getattr(hook, "hooks", [hook]) if getattr(h, "offload", False)]
