"""Replacing what a module computes while a block is open: a constant, another module's weights, a changed input.

A module's `forward` is ours inside the block; its class, parameters and hooks are untouched, and afterwards exactly
what was there before is back, accelerate's wrapper (which lives in the same attribute) included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeAlias

from torch import nn

from krs.hooks.interrupts import interrupt_deferred

ForwardOverride: TypeAlias = Callable[..., Any]
"""Called in place of a module's forward, as `override(original_forward, *args, **kwargs)`."""

_MISSING = object()


@contextmanager
def override_forward(overrides: Mapping[nn.Module, ForwardOverride]) -> Iterator[None]:
    """Inside, each of these modules runs its override instead of its own forward."""
    before: list[tuple[nn.Module, Any]] = []
    try:
        with interrupt_deferred():
            for module, override in overrides.items():
                had = module.__dict__.get("forward", _MISSING)
                before.append((module, had))
                object.__setattr__(module, "forward", partial(override, module.forward))
        yield
    finally:
        with interrupt_deferred():
            for module, had in reversed(before):
                if had is _MISSING:
                    object.__delattr__(module, "forward")
                else:
                    object.__setattr__(module, "forward", had)


def compose(outer: ForwardOverride, inner: ForwardOverride | None) -> ForwardOverride:
    """An override that runs `outer` with `inner` as the forward that it may call."""
    if inner is None:
        return outer
    return lambda forward, *args, **kwargs: outer(partial(inner, forward), *args, **kwargs)
