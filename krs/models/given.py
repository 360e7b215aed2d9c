"""Models as callers give them, loaded or by name: names are loaded to the accelerator, if they fit there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import nn

from krs._typing import Tokenizer
from krs.errors import KrsError
from krs.extras import require
from krs.hooks.given import Traced, check_model, traced
from krs.models.checkpoints import weight_bytes
from krs.models.devices import pick_device, pick_dtype
from krs.models.hub import source
from krs.models.load import load
from krs.models.memory import free_memory
from krs.models.places import locate
from krs.progress import loading

Model: TypeAlias = nn.Module | Traced | str | Path


def load_given(
    given: Mapping[str, Model],
    *,
    device: str | torch.device = "auto",
    dtype: torch.dtype | str = "auto",
    device_map: Any = None,
    offload: str | None = None,
) -> list[tuple[Any, Tokenizer | None]]:
    """Each model, and the tokenizer beside it if it was given by name. Models that are loaded stay as they are.

    Args:
        given: models or names, by what they are for.
        device: `"auto"` is the GPU where there is one, else the CPU; or a device by name.
        dtype: as in `krs.load`.
        device_map: `"auto"` shares the models out over all devices there are, as `accelerate` does.
        offload: `"disk"` leaves the weights in the checkpoints.

    Raises `KrsError` before anything is loaded: for names that are none, for options that no name is given for, and
    for models that do not fit, with what would.
    """
    given = {side: traced(model, side) for side, model in given.items()}
    names = {side: model for side, model in given.items() if isinstance(model, str | Path)}
    asked = {"device": device != "auto", "dtype": dtype != "auto", "device_map": device_map is not None}
    for side, model in given.items():
        if side not in names:
            check_model(model, side)
    if len(names) < len(given) and offload is not None:
        raise KrsError(
            "offload= is for models given by name; one that is loaded stays as it is: load it with "
            "krs.load(…, offload='disk') or device_map=, or pass its name"
        )
    if not names and any(asked.values()):
        option = next(name for name, said in asked.items() if said)
        raise KrsError(f"{option}= is for models given by name; these are loaded: move or convert them yourself")
    options = load_options(device, dtype, device_map, offload)
    located = {side: locate(name) for side, name in names.items()}
    if names and device_map is None and offload is None:
        check_fit(located, options["dtype"], options["device"])
    loading(names.values())
    return [load(names[side], **options) if side in names else (model, None) for side, model in given.items()]


def load_options(
    device: str | torch.device, dtype: torch.dtype | str, device_map: Any = None, offload: str | None = None
) -> dict[str, Any]:
    """What `krs.load` takes, checked."""
    picked: dict[str, Any] = {"dtype": pick_dtype(dtype)}
    if device_map is not None:
        if device != "auto":
            raise KrsError(f"device={str(device)!r} and device_map= are two ways to say where models go: give one")
        require("accelerate", "unlearn", "device_map=")
        picked["device_map"] = device_map
    if offload is not None:
        return picked | {"offload": offload, "device": None if device == "auto" else device}
    return picked | {"device": None if device_map is not None else pick_device(device)}


def check_fit(located: Mapping[str, tuple[str, bool]], dtype: torch.dtype | str, device: torch.device) -> None:
    """Raise `KrsError` for models whose weights are larger than the memory that is free on a device.

    Sizes come from the headers of the checkpoints; where these do not say, nothing is checked.
    """
    needed, free = memory_needed(located, dtype), free_memory(device)
    if needed is None or needed <= free:
        return
    what = "the weights of both models together" if len(located) > 1 else "the model's weights"
    ways = _ways(located, dtype, device, free)
    raise KrsError(
        f"{what} take {_gb(needed)}{'' if dtype == 'auto' else f' in {dtype}'}, and {_gb(free)} are free on "
        f"{device}: {'; or '.join(ways)}"
    )


def memory_needed(located: Mapping[str, tuple[str, bool]], dtype: torch.dtype | str) -> int | None:
    """Bytes of all models' weights; `None` where a checkpoint does not say."""
    sizes = [weight_bytes(where, dtype, source(local)) for where, local in located.values()]
    return None if any(size is None for size in sizes) else sum(size for size in sizes if size is not None)


def _ways(
    located: Mapping[str, tuple[str, bool]], dtype: torch.dtype | str, device: torch.device, free: int
) -> list[str]:
    """What would fit instead."""
    ways = []
    for name in ("bfloat16", "float16"):
        smaller = memory_needed(located, getattr(torch, name))
        if smaller is not None and smaller <= free and dtype not in (torch.bfloat16, torch.float16):
            ways.append(f"load them with dtype={name!r} ({_gb(smaller)})")
            break
    needed = memory_needed(located, dtype)
    assert needed is not None
    host = torch.device("cpu")
    if device.type != "cpu" and needed <= free_memory(host):
        ways.append(f"compute on the CPU (device='cpu', {_gb(free_memory(host))} free)")
    if device.type == "cuda" and needed <= sum(torch.cuda.mem_get_info(i)[0] for i in range(torch.cuda.device_count())):
        ways.append("share them out over all GPUs (device_map='auto')")
    return [*ways, "leave the weights on disk (offload='disk', with answers=)"]


def _gb(size: int) -> str:
    return f"{size / 1e9:.3g} GB"
