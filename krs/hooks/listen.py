"""The one place where krs hooks into a module's inputs and outputs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from krs.errors import KrsError
from krs.hooks.points import ActivationPoint
from krs.hooks.values import first_tensor, returned, with_first, with_returned

_Seen: TypeAlias = Callable[[Tensor], Tensor | None]


def on_value(modules: list[nn.Module], point: ActivationPoint, fn: _Seen) -> RemovableHandle:
    """Call `fn(value)` whenever the point's value passes; what it returns, unless `None`, takes its place.

    The caller removes the handle that is returned. The value is the first tensor that a
    module is called with, and the first of a tuple that it returns.
    """
    if len(modules) != 1:
        raise KrsError(f"the activation point {point.name} needs one module a layer, its role names {len(modules)}")

    if point.side == "input":
        return modules[0].register_forward_pre_hook(partial(_before, fn), with_kwargs=True)
    return modules[0].register_forward_hook(partial(_after, fn))


def on_call(module: nn.Module, fn: Callable[[tuple[Any, ...], dict[str, Any], Any], Tensor | None]) -> RemovableHandle:
    """Call `fn(args, kwargs, output)` after each call; what it returns, unless `None`, is the value returned instead.

    The caller removes the handle that is returned.
    """

    def after(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        new = fn(args, kwargs, output)
        return None if new is None else with_returned(output, new)

    return module.register_forward_hook(after, with_kwargs=True)


def _before(fn: _Seen, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    slot, value = first_tensor(args, kwargs)
    new = fn(value)
    return None if new is None else with_first(args, kwargs, slot, new)


def _after(fn: _Seen, _: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
    new = fn(returned(output))
    return None if new is None else with_returned(output, new)
