"""Weights that `accelerate` keeps elsewhere and brings in when their module is called."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from krs.errors import KrsError
from krs.hooks.interrupts import interrupt_deferred


@contextmanager
def materialised(module: nn.Module, recurse: bool = True) -> Iterator[None]:
    """Inside, a module's offloaded weights are in memory, loaded once by accelerate's own hooks.

    Those hooks load a weight whenever its module is called, and drop it afterwards; a sweep calls a layer's modules
    many times. Modules that are not offloaded are left alone, and without `recurse` all modules within.
    """
    before: list[tuple[nn.Module, Any, Any]] = []
    try:
        for part in module.modules() if recurse else [module]:
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


def check_whole(model: nn.Module, what: str) -> None:
    """Raise `KrsError` for a model of which no copy can be changed: some of its weights are brought in at each call.

    What would be written into such a copy is not what it computes with. `what` says what the copy is for.
    """
    if is_offloaded(model) or any(p.device.type == "meta" for p in model.parameters()):
        raise KrsError(
            f"{what} needs a copy with all weights in memory, and some are offloaded: load the models whole, in "
            "bfloat16 or on more memory"
        )


def _offloading(module: nn.Module) -> list[Any]:
    hook = getattr(module, "_hf_hook", None)
    return [h for h in getattr(hook, "hooks", [hook]) if getattr(h, "offload", False)]
