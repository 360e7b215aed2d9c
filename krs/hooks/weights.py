"""Reading and replacing one projection's weight, whatever its layout, and giving it back bit for bit."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from krs.errors import KrsError
from krs.hooks.unwrap import core, is_wrapped_linear


def read_weight(module: nn.Module, path: str) -> Shaped[Tensor, "in *out"]:
    """The weight that `module` applies, as `[in, out]`: for an MLP's output projection, a row a value vector.

    A view of the parameter where there is no adapter; with one, the sum of the weight and the adapter's
    change. Raises `KrsError` for a weight that is not here (offloaded) or is packed (quantised).
    """
    holder = core(module)
    weight = _parameter(holder, path)
    if is_wrapped_linear(module) and not module.disable_adapters and not module.merged:
        weight = weight + sum(module.get_delta_weight(name) for name in module.active_adapters)  # type: ignore[operator, union-attr]
    return _as_rows(holder, weight)


def replace_weight(module: nn.Module, path: str, value: Shaped[Tensor, "in *out"]) -> Callable[[], None]:
    """Make `module` apply `value` (`[in, out]`) and return the function that undoes it, bit for bit.

    The parameter is written in place, so tied parameters stay tied. An adapter on the module is switched off
    meanwhile: the value is the whole weight, not an addition to it.
    """
    holder = core(module)
    weight = _parameter(holder, path)
    rows = _as_rows(holder, weight)
    if tuple(value.shape) != tuple(rows.shape):
        raise KrsError(
            f"{path}: the weight is {list(rows.shape)} ([in, out]) and cannot take a value of "
            f"{list(value.shape)}: the two models must have the same shape"
        )
    saved = weight.detach().clone()
    adapters = _adapter_state(module)

    def undo() -> None:
        with torch.no_grad():
            weight.copy_(saved)
        _restore_adapters(module, adapters)

    try:
        with torch.no_grad():
            rows.copy_(value)
        if adapters is not None:
            module.enable_adapters(False)  # type: ignore[operator]
    except BaseException:
        undo()
        raise
    return undo


def replace_whole(module: nn.Module, other: nn.Module) -> Callable[[], None]:
    """Give every parameter inside `module` the value that it has in `other`; returns what undoes it, bit for bit."""
    theirs = dict(other.named_parameters())
    ours = dict(module.named_parameters())
    if ours.keys() != theirs.keys() or any(ours[n].shape != theirs[n].shape for n in ours):
        raise KrsError(
            "all weights of a layer go from one model to the other only where both have the same parameters: merge "
            "adapters first (merge_and_unload())"
        )
    if elsewhere := [n for n in ours if "meta" in (ours[n].device.type, theirs[n].device.type)]:
        raise KrsError(f"{elsewhere[0]!r} is offloaded and not in memory, so it cannot be replaced here")
    saved = {name: p.detach().clone() for name, p in ours.items()}

    def undo() -> None:
        with torch.no_grad():
            for name, value in saved.items():
                ours[name].copy_(value)

    try:
        with torch.no_grad():
            for name, p in ours.items():
                p.copy_(theirs[name])
    except BaseException:
        undo()
        raise
    return undo


def _parameter(holder: nn.Module, path: str) -> Tensor:
    weight = getattr(holder, "weight", None)
    if not isinstance(weight, Tensor):
        raise KrsError(f"{path} ({type(holder).__name__}) has no weight to read or replace")
    if weight.device.type == "meta":
        raise KrsError(
            f"{path}: the weight is offloaded and not in memory, so it cannot be read or replaced here: "
            "load the model without offload, or leave the weight points out"
        )
    if not weight.is_floating_point() or weight.dim() not in (1, 2):
        raise KrsError(
            f"{path}: the weight is packed ({weight.dtype}, {list(weight.shape)}), so value vectors cannot be "
            "put back: load both models unquantised, or leave the weight points out"
        )
    return weight


def _as_rows(holder: nn.Module, weight: Tensor) -> Tensor:
    """GPT-2's Conv1D keeps `[in, out]`; every Linear keeps `[out, in]`."""
    return weight if weight.dim() == 1 or type(holder).__name__ == "Conv1D" else weight.T


def _adapter_state(module: nn.Module) -> dict[str, bool] | None:
    if not is_wrapped_linear(module) or module.disable_adapters or module.merged:
        return None
    return {name: p.requires_grad for name, p in module.named_parameters()}


def _restore_adapters(module: nn.Module, state: dict[str, bool] | None) -> None:
    if state is None:
        return
    module.enable_adapters(True)  # type: ignore[operator]
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(state[name])
