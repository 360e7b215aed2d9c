"""Modules that answer for themselves: with a constant, with another module's weights, with a part replaced.

While a block is open, a module's `forward` is ours; its class, parameters and hooks are untouched, and afterwards
exactly what was there before is back, accelerate's wrapper (which lives in the same attribute) included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeAlias

from torch import nn

from krs.hooks.interrupts import interrupt_deferred

Answer: TypeAlias = Callable[..., Any]
"""Takes what the module was called with, after the forward that it had: `answer(forward, *args, **kwargs)`."""

_MISSING = object()


@contextmanager
def answering(answers: Mapping[nn.Module, Answer]) -> Iterator[None]:
    """Inside, each module's calls are answered by its `answer`."""
    before: list[tuple[nn.Module, Any]] = []
    try:
        with interrupt_deferred():
            for module, answer in answers.items():
                had = module.__dict__.get("forward", _MISSING)
                before.append((module, had))
                object.__setattr__(module, "forward", partial(answer, module.forward))
        yield
    finally:
        with interrupt_deferred():
            for module, had in reversed(before):
                if had is _MISSING:
                    object.__delattr__(module, "forward")
                else:
                    object.__setattr__(module, "forward", had)


def around(outer: Answer, inner: Answer | None) -> Answer:
    """`outer`, whose forward is `inner`'s answer."""
    if inner is None:
        return outer
    return lambda forward, *args, **kwargs: outer(partial(inner, forward), *args, **kwargs)


@contextmanager
def held(module: nn.Module) -> Iterator[None]:
    """Inside, weights that accelerate has offloaded are in memory, loaded once by accelerate's own hooks.

    Those hooks load a weight whenever its module is called, and drop it afterwards; a pass calls a layer's modules
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
