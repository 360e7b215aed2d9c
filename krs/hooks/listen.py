"""The one place where krs hooks into a module's inputs and outputs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from krs.errors import KrsError
from krs.hooks.points import ActivationPoint

_Seen: TypeAlias = Callable[[Tensor], Tensor | None]


def on_value(modules: list[nn.Module], point: ActivationPoint, fn: _Seen) -> RemovableHandle:
    """Call `fn(value)` whenever the point's value passes; what it returns, unless `None`, takes its place.

    The caller removes the handle that is returned. A module that returns a tuple has the value first in it.
    """
    if len(modules) != 1:
        raise KrsError(f"the activation point {point.name} needs one module a layer, its role names {len(modules)}")

    if point.side == "input":
        return modules[0].register_forward_pre_hook(partial(_before, fn))
    return modules[0].register_forward_hook(partial(_after, fn))


def _before(fn: _Seen, _: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    new = fn(args[0])
    return None if new is None else (new, *args[1:])


def _after(fn: _Seen, _: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
    if not isinstance(output, tuple):
        return fn(output)
    new = fn(output[0])
    return None if new is None else (new, *output[1:])
