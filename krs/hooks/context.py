"""What the caller has switched on around a call must not change a number.

`record` and `patched` take part in the caller's own forwards and so in whatever surrounds those. Every other call of
krs runs the models itself, and does it under these two contexts: the numbers are those of the models' own dtype.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from krs.errors import KrsError
from krs.hooks.interrupts import interrupt_deferred
from krs.hooks.rope import own_factors

_AUTOCAST = ("cpu", "cuda", "mps", "xpu", "hpu", "mtia", "xla", "privateuseone")
_OUTPUT_FLAGS = {
    "output_attentions": False,
    "output_hidden_states": False,
    "output_router_logits": False,
    "return_dict": True,
}

_LOCK = threading.Lock()
_USED_BY: WeakKeyDictionary[nn.Module, tuple[int, int]] = WeakKeyDictionary()
"""Models that a call of krs runs at the moment: the thread, and how many calls deep it is."""

_CONFIGS: dict[int, tuple[int, int]] = {}
"""Their configurations, which several models may share, likewise: by identity, for they are no keys."""


@contextmanager
def plain_numerics() -> Iterator[None]:
    """Inside, torch computes as it does by default; also a decorator, `@plain_numerics()`.

    Gradients, inference mode and autocast are off, the default dtype is float32 and the default device the CPU.
    Afterwards everything is as the caller had it.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        for device in _AUTOCAST:
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        if torch.get_default_dtype() != torch.float32:
            stack.callback(torch.set_default_dtype, torch.get_default_dtype())
            torch.set_default_dtype(torch.float32)
        if torch.empty(0).device.type != "cpu":
            stack.enter_context(torch.device("cpu"))
        yield


@contextmanager
def plain_calls(*models: nn.Module) -> Iterator[None]:
    """Inside, models return their logits and nothing else, and no other thread's call of krs runs them.

    Switches off what `config.output_hidden_states`, `config.output_attentions`, `config.output_router_logits` (a loss
    beside the logits, which does not go with a key-value cache) and `config.return_dict=False` ask for, and lets rotary
    embeddings start from the factors they were made with. Afterwards all of it is back.

    Raises `KrsError` when another thread is inside a call of krs with one of these models: each would read what the
    other patches.
    """
    outermost, configs = _enter(models)
    try:
        with ExitStack() as stack:
            with interrupt_deferred():
                for model in outermost:
                    _quieten(model, stack)
                    stack.enter_context(own_factors(model))
            yield
    finally:
        _leave(models, configs)


def numerics() -> dict[str, Any]:
    """For provenance: what may still change how this process rounds."""
    return {
        "autocast": "off",
        "float32_matmul_precision": _matmul_precision(),
        "deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
    }


def _matmul_precision() -> str:
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # it was set for one backend, and torch refuses to put that into one word
        backends: Any = torch.backends
        return f"cuda: {backends.cuda.matmul.fp32_precision}, cpu: {backends.mkldnn.matmul.fp32_precision}"


def _enter(models: tuple[nn.Module, ...]) -> tuple[list[nn.Module], list[int]]:
    """Note that this thread runs these models; returns those that it did not run before, and their configurations."""
    me = threading.get_ident()
    with _LOCK:
        for model in models:
            if _USED_BY.get(model, (me, 0))[0] != me:
                raise KrsError(
                    f"another thread is inside a call of krs with this {type(model).__name__}, and each would read "
                    "what the other patches: make the calls one after the other, or give each thread a copy of the "
                    "model (copy.deepcopy)"
                )
        new = [model for model in dict.fromkeys(models) if model not in _USED_BY]
        configs = [id(config) for model in new for config in _configs(model)]
        if any(_CONFIGS.get(config, (me, 0))[0] != me for config in configs):
            raise KrsError(
                "another thread is inside a call of krs with a model that has the same configuration object, which "
                "says how both attend: make the calls one after the other, or give each thread a copy of its models "
                "(copy.deepcopy)"
            )
        for config in configs:
            _CONFIGS[config] = me, _CONFIGS.get(config, (me, 0))[1] + 1
        for model in models:
            _USED_BY[model] = me, _USED_BY.get(model, (me, 0))[1] + 1
    return new, configs


def _leave(models: tuple[nn.Module, ...], configs: list[int]) -> None:
    with _LOCK:
        for config in configs:
            thread, depth = _CONFIGS.pop(config)
            if depth > 1:
                _CONFIGS[config] = thread, depth - 1
        for model in models:
            thread, depth = _USED_BY.pop(model)
            if depth > 1:
                _USED_BY[model] = thread, depth - 1


def _configs(model: nn.Module) -> list[Any]:
    """The configurations of a model's modules, each once."""
    return list({id(c): c for m in model.modules() if (c := getattr(m, "config", None)) is not None}.values())


def _quieten(model: nn.Module, stack: ExitStack) -> None:
    """Take back what a model's configurations ask for beside the logits."""
    for config in _configs(model):
        for name, value in _OUTPUT_FLAGS.items():
            had = getattr(config, "__dict__", {})
            key = f"_{name}" if f"_{name}" in had else name
            if key in had and bool(had[key]) != value:
                stack.callback(had.__setitem__, key, had[key])
                had[key] = value
