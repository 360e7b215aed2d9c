"""An accelerator for machines that have none: its tensors lie on the host, say otherwise, and keep to CUDA's rules.

Inside `accelerator()`, tensors on `pretend:0` and `pretend:1` refuse to be mixed with others (numbers and index tensors
may stay on the host), to become numpy arrays, and on request to be float64, as Apple's do. What would make a real one
wait for its results is counted. It says nothing about speed, nor about kernels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import (
    _DummyPrivateUse1Hook,
    _setup_privateuseone_for_python_backend,
)

KIND = "pretend"
_DEVICES = 2
_CPU = torch.device("cpu")
_ATEN = torch.ops.aten
_MOVES = {_ATEN.copy_.default, _ATEN._to_copy.default, _ATEN._copy_from.default}
_TAKES_HOST_INDICES = {
    _ATEN.index.Tensor,
    _ATEN.index_put.default,
    _ATEN.index_put_.default,
    _ATEN._index_put_impl_.default,
}
_WAITS = {
    _ATEN._local_scalar_dense.default,
    _ATEN.equal.default,
    _ATEN.nonzero.default,
    _ATEN.masked_select.default,
    _ATEN._unique2.default,
}
"""Operations whose result, or its shape, the host has to wait for."""


class Accelerator:
    """What happened inside the block: `waits` counts results that the host waited for, by operation."""

    def __init__(self, float64: bool) -> None:
        self.float64 = float64
        self.waits: Counter[str] = Counter()

    @property
    def n_waits(self) -> int:
        return self.waits.total()


_PRESENT: list[Accelerator] = []


class There(torch.Tensor):
    """A host tensor that says it is on the accelerator."""

    host: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, host: torch.Tensor, device: torch.device) -> There:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            host.size(),
            strides=host.stride(),
            storage_offset=host.storage_offset(),
            dtype=host.dtype,
            layout=host.layout,
            device=device,
        )
        made.host = host
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(func, args, kwargs or {})

    def __repr__(self, **_: Any) -> str:
        return f"There({self.host!r}, device={str(self.device)!r})"

    def __deepcopy__(self, memo: dict[int, Any]) -> There:
        if id(self) not in memo:
            copied = There(self.host.detach().clone(), self.device).requires_grad_(self.requires_grad)
            if getattr(self, "_is_param", False):
                copied._is_param = True
            memo[id(self)] = copied
        return memo[id(self)]

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError(f"can't convert {self.device} tensor to numpy: .cpu() it first")

    __array__ = numpy

    def tolist(self) -> Any:
        _PRESENT[-1].waits["tolist"] += 1
        return self.host.tolist()

    def data_ptr(self) -> int:
        return self.host.data_ptr()

    def untyped_storage(self) -> Any:
        return self.host.untyped_storage()


def _computed(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """The operation on the host's tensors, in the clothes of the device that it happens on."""
    if func is _ATEN._fused_sdp_choice.default:
        return 0  # attention in plain operations; fused kernels are each device's own
    given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    place = _place(func, args, kwargs, given)
    if func not in _MOVES:
        _refuse_mixtures(func, args, given)
    _count(func, args, kwargs, given)
    bare = tree_map(_bare, (args, kwargs))
    if bare[1].get("device") is not None:
        bare[1]["device"] = _CPU
    out = func(*bare[0], **bare[1])
    if place.type != KIND:
        return out
    out = tree_map(lambda made: _dressed(made, place), out)
    if func is _ATEN.copy_.default or not _aliases(func):
        return args[0] if func is _ATEN.copy_.default else out
    return return_and_correct_aliasing(func, args, kwargs, out)


def _place(func: Any, args: Any, kwargs: dict[str, Any], given: list[torch.Tensor]) -> torch.device:
    if func is _ATEN.copy_.default:
        return args[0].device
    asked = kwargs.get("device")
    if asked is not None:
        asked = torch.device(asked)
        return torch.device(KIND, 0) if asked.type == KIND and asked.index is None else asked
    return next((tensor.device for tensor in given if isinstance(tensor, There)), _CPU)


def _refuse_mixtures(func: Any, args: Any, given: list[torch.Tensor]) -> None:
    if func in _TAKES_HOST_INDICES:
        given = [args[0], *([args[2]] if len(args) > 2 else [])]
    places = {str(tensor.device) for tensor in given if tensor.dim() > 0}
    if len(places) > 1 and any(KIND in place for place in places):
        raise RuntimeError(f"Expected all tensors to be on the same device, but found {sorted(places)} in {func}")


def _count(func: Any, args: Any, kwargs: dict[str, Any], given: list[torch.Tensor]) -> None:
    if not any(isinstance(tensor, There) for tensor in given):
        return
    to_host = func is _ATEN._to_copy.default and kwargs.get("device") == _CPU
    to_host |= func is _ATEN.copy_.default and not isinstance(args[0], There)
    masks = func in _TAKES_HOST_INDICES and any(t is not None and t.dtype == torch.bool for t in args[1])
    if func in _WAITS or to_host or masks:
        _PRESENT[-1].waits[str(func)] += 1


def _aliases(func: Any) -> bool:
    return any(argument.alias_info is not None for argument in func._schema.arguments)


def _bare(value: Any) -> Any:
    return value.host if isinstance(value, There) else value


def _dressed(value: Any, place: torch.device) -> Any:
    if type(value) is not torch.Tensor:
        return value
    if value.dtype == torch.float64 and _PRESENT and not _PRESENT[-1].float64:
        raise TypeError("Cannot convert a pretend tensor to float64 dtype: the device has none")
    return There(value, place)


class _Dispatch(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _computed(func, args, kwargs or {})


class _Backend:
    """What torch asks a kind of device for; outside `accelerator()` there is none."""

    def is_initialized(self) -> bool:
        return True

    def is_available(self) -> bool:
        return bool(_PRESENT)

    def current_device(self) -> int:
        return 0

    def device_count(self) -> int:
        return _DEVICES if _PRESENT else 0

    def _is_in_bad_fork(self) -> bool:
        return False

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def manual_seed_all(self, _: int) -> None: ...


class _Hook(_DummyPrivateUse1Hook):
    def is_available(self) -> bool:
        return bool(_PRESENT)


def _register() -> list[Any]:
    """Make the kind known to torch, and the few operations that reach it past Python tensors."""
    _setup_privateuseone_for_python_backend(KIND, _Backend(), _Hook())
    everything, aten = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
    everything.fallback(lambda op, *args, **kwargs: _computed(op, args, kwargs), "PrivateUse1")

    def empty(size: Any, *, dtype: Any = None, device: Any = None, **_: Any) -> There:
        return _dressed(torch.empty(size, dtype=dtype), torch.device(KIND, device.index or 0))

    def empty_strided(size: Any, stride: Any, *, dtype: Any = None, device: Any = None, **_: Any) -> There:
        return _dressed(torch.empty_strided(size, stride, dtype=dtype), torch.device(KIND, device.index or 0))

    def copy_from(source: Any, target: Any, non_blocking: bool = False) -> Any:
        _bare(target).copy_(_bare(source))
        return target

    def item(tensor: There) -> Any:
        _PRESENT[-1].waits["item"] += 1
        return tensor.host.item()

    aten.impl("empty.memory_format", empty, "PrivateUse1")
    aten.impl("empty_strided", empty_strided, "PrivateUse1")
    aten.impl("_copy_from", copy_from, "PrivateUse1")
    aten.impl("_local_scalar_dense", item, "PrivateUse1")
    return [everything, aten]


_REGISTERED = _register()


@contextmanager
def accelerator(float64: bool = True) -> Iterator[Accelerator]:
    """Inside, there are two pretended devices, with or without float64."""
    from krs.hooks.linear import PLAIN_TYPES
    from krs.models.devices import _takes_float64

    PLAIN_TYPES.add(There)  # a real accelerator's parameters are torch's own
    _PRESENT.append(Accelerator(float64))
    _takes_float64.cache_clear()
    torch.__future__.set_swap_module_params_on_conversion(True)  # what `.data = …` does elsewhere cannot be seen here
    try:
        with _Dispatch():
            yield _PRESENT[-1]
    finally:
        PLAIN_TYPES.discard(There)
        torch.__future__.set_swap_module_params_on_conversion(False)
        _PRESENT.pop()
        _takes_float64.cache_clear()


def put(model: nn.Module, device: str) -> nn.Module:
    """Move a model, in place; what was one parameter stays one."""
    place, moved = torch.device(device), {}
    if place.type == "cpu":
        return model
    for module in model.modules():
        for held in (module._parameters, module._buffers):
            for name, value in held.items():
                if value is None:
                    continue
                if id(value) not in moved:
                    there = _dressed(value.detach(), place)
                    is_parameter = isinstance(value, nn.Parameter)
                    moved[id(value)] = value, nn.Parameter(there, value.requires_grad) if is_parameter else there
                held[name] = moved[id(value)][1]
    return model
