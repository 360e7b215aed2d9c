"""Where models go: devices and dtypes by name, and what a device can do."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from krs.errors import KrsError
from krs.names import DTYPES


def pick_device(given: str | torch.device | None) -> torch.device:
    """A device by name; `"auto"` is the GPU where CUDA has one (of several processes each its own), else the CPU.

    >>> pick_device("cpu")
    device(type='cpu')

    Raises `KrsError` for a name that torch does not know, and for a device that is not there.
    """
    if given is None:
        return torch.device("cpu")
    if isinstance(given, str) and given == "auto":
        if not torch.cuda.is_available():
            return torch.device("cpu")
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    try:
        device = torch.device(given)
    except RuntimeError:
        raise KrsError(f"device={given!r}: give 'auto', 'cpu', 'cuda', 'cuda:1', 'xpu' or 'mps'") from None
    if device.type not in ("cpu", "meta") and not _is_there(device):
        raise KrsError(
            f"device={str(given)!r} is not there (torch sees {_seen()}): leave it out, or install a torch that is "
            "built for it"
        )
    return device


def pick_dtype(given: torch.dtype | str) -> torch.dtype | str:
    """A torch dtype, also by name; `"auto"` stays, for it is the checkpoint's own.

    >>> pick_dtype("bfloat16")
    torch.bfloat16
    """
    if isinstance(given, torch.dtype) or given == "auto":
        return given
    if given not in DTYPES:
        raise KrsError(f"dtype={given!r}: give a torch dtype such as {', '.join(DTYPES)}, or 'auto'")
    found = getattr(torch, given)
    assert isinstance(found, torch.dtype)
    return found


def has_float64(device: torch.device) -> bool:
    """Whether a device computes in float64 (Apple's does not, nor do some of Intel's)."""
    return device.type == "cpu" or _takes_float64(str(device))


def on_host(values: Sequence[Tensor]) -> Tensor:
    """Several of one shape, stacked on the host; those of one device wait for it once."""
    together = len({value.device for value in values}) == 1
    return torch.stack(list(values) if together else [value.cpu() for value in values]).cpu()


def summable(values: Tensor) -> Tensor:
    """The same values where they can be summed in float64: on their device if that can, else on the host."""
    return values if has_float64(values.device) else values.cpu()


@lru_cache
def _takes_float64(device: str) -> bool:
    try:
        torch.zeros(1, dtype=torch.float64, device=device).add_(1)
    except (TypeError, RuntimeError):
        return False
    return True


def _is_there(device: torch.device) -> bool:
    try:
        module = torch.get_device_module(device)
    except RuntimeError:
        return False
    if not module.is_available():
        return False
    return device.index is None or device.index < module.device_count()


def _seen() -> str:
    kinds = [kind for kind in ("cuda", "xpu", "mps") if _is_there(torch.device(kind))]
    return ", ".join(["cpu", *(f"{kind} ({torch.get_device_module(kind).device_count()})" for kind in kinds)])
