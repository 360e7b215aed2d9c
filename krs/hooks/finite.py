"""Models whose numbers are no numbers: which one it is, where it begins, and what helps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from krs.errors import KrsError
from krs.hooks.anatomy import Anatomy, anatomy
from krs.hooks.points import Point
from krs.hooks.unwrap import core

WIDER = "load both models in bfloat16 or float32 (dtype=torch.bfloat16)"


REMEDY = f"Load or train it again; if the values were lost in a cast to float16, {WIDER}"

_PATCHED: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()
"""How many `patched` blocks are open on a model."""


def is_finite(values: Tensor) -> bool:
    """Whether no value is NaN or infinite."""
    return bool(torch.isfinite(values).all())


def broken_weight(model: nn.Module) -> str | None:
    """The first parameter that holds NaN or infinity, with how many; `None` where all are finite.

    Weights that are offloaded or packed are passed over. Reads every weight: ask only when something is wrong.
    """
    for name, parameter in model.named_parameters():
        if parameter.device.type == "meta" or not parameter.is_floating_point():
            continue
        wrong = parameter.numel() - int(torch.isfinite(parameter.detach()).sum())
        if wrong:
            return f"its weight {name!r} has {wrong} of {parameter.numel()} values that are NaN or infinite"
    return None


@contextmanager
def patches_open(model: nn.Module) -> Iterator[None]:
    """Inside, what a model computes is the caller's doing, who may put NaN into it to see where it gets."""
    _PATCHED[model] = _PATCHED.get(model, 0) + 1
    try:
        yield
    finally:
        _PATCHED[model] -= 1


def refuse_recorded(body: Anatomy, values: Mapping[tuple[Point, int | None], tuple[Tensor, ...]]) -> None:
    """Raise `KrsError` for values, by point and layer, that are not finite although nobody has patched the model."""
    if not values or _PATCHED.get(body.model):
        return
    flags = [torch.isfinite(v).all().to("cpu", non_blocking=True) for several in values.values() for v in several]
    if all(flags):
        return
    point, layer = next(key for key, several in values.items() if not all(map(is_finite, several)))
    what = f"{point.named(layer)} ({body.path(point, layer)!r}) is NaN or infinite"
    if broken := broken_weight(body.model):
        raise KrsError(f"{what}: {broken}. {REMEDY}")
    raise KrsError(f"{what}, though all weights are finite: {_overflow(body.model)}")


def refuse_not_finite(model: nn.Module, side: str, inputs: Mapping[str, Any], where: str = "") -> None:
    """Raise `KrsError` that says why a model's logits are not finite; does nothing if they are.

    Args:
        model: a plain model, of a known family or not.
        side: what to call it.
        inputs: what its forward is called with; it runs once more, watched layer by layer.
        where: added to the message, such as `" on prompt 3"`.
    """
    with torch.no_grad():
        place = _first_overflow(model, inputs)
    if place is None:
        return
    if broken := broken_weight(model):
        raise KrsError(f"the logits of {side} are NaN or infinite{where}: {broken}. {REMEDY}")
    raise KrsError(
        f"the logits of {side} are NaN or infinite{where}, though all its weights are finite: "
        f"{_overflow(model, f', first {place}')}"
    )


def _overflow(model: nn.Module, place: str = "") -> str:
    """What overflows where, and the remedy."""
    dtype = str(_dtype(model)).removeprefix("torch.")
    if dtype == "float16":
        return f"it overflows in float16, which ends at 65504{place}. {WIDER[0].upper()}{WIDER[1:]}"
    return f"it overflows in {dtype}{place}. Its weights are out of all proportion: take a checkpoint from before"


def _first_overflow(model: nn.Module, inputs: Mapping[str, Any]) -> str | None:
    """Where, in one forward, a value is first not finite; `None` if the logits are finite."""
    bad: list[str] = []

    def look(name: str, value: Any) -> None:
        states = value[0] if isinstance(value, tuple) else value
        if isinstance(states, Tensor) and not bad and not is_finite(states):
            bad.append(name)

    with ExitStack() as stack:
        first = True
        for i, (path, layer) in enumerate(_layers(model)):

            def after(_: nn.Module, __: Any, output: Any, name: str = f"in layer {i} ({path!r})") -> None:
                look(name, output)

            if first:

                def before(_: nn.Module, args: Any, kwargs: Any) -> None:
                    look("in the embeddings", args[0] if args else kwargs.get("hidden_states"))

                stack.callback(layer.register_forward_pre_hook(before, with_kwargs=True).remove)
                first = False
            stack.callback(layer.register_forward_hook(after).remove)
        logits = model(**inputs, use_cache=False).logits
    if is_finite(logits):
        return None
    return bad[0] if bad else "behind the layers"


def _layers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The decoder layers with their paths; none in a model of an unknown family."""
    try:
        body = anatomy(model)
    except KrsError:
        return []
    return [(f"{body.family.layers}.{i}", layer) for i, layer in enumerate(body.layers)]


def _dtype(model: nn.Module) -> torch.dtype:
    weight = core(model.get_input_embeddings()).weight  # type: ignore[operator]
    assert isinstance(weight, Tensor)
    return weight.dtype
