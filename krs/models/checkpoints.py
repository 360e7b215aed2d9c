"""A checkpoint's weight files: where they are, what is in them, and how much memory they will take."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from krs.models.hub import file_of, hub_options, json_of, source
from krs.models.places import locate

_WHOLE = ("model.safetensors", "pytorch_model.bin")
_ADAPTER = ("adapter_model.safetensors", "adapter_model.bin")
_FLOATS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
_OTHERS = {"I64": 8, "I32": 4, "I16": 2, "U16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "I8": 1, "U8": 1, "BOOL": 1}


def weight_files(where: str, options: dict[str, Any]) -> list[Path]:
    """The files that hold a checkpoint's weights, fetched if need be: safetensors if there are any, else pickles."""
    for name in _WHOLE:
        if (found := file_of(where, name, options)) is not None:
            return [found]
        if (index := file_of(where, f"{name}.index.json", options)) is not None:
            parts = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            files = [file_of(where, part, options) for part in parts]
            if missing := [part for part, file in zip(parts, files, strict=True) if file is None]:
                raise OSError(f"{missing[0]!r}, which {index.name!r} names, is not there")
            return [file for file in files if file is not None]
    raise OSError(f"there is none of {', '.join(_WHOLE)} in it")


def read_weights(where: str, options: dict[str, Any]) -> dict[str, Tensor]:
    """A checkpoint's weights by name, as they are stored. Of a pickle nothing but tensors is read."""
    from safetensors.torch import load_file

    weights: dict[str, Tensor] = {}
    for file in weight_files(where, options):
        if file.suffix == ".safetensors":
            weights |= load_file(file)
        else:
            weights |= torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    return weights


def weight_bytes(where: str, dtype: torch.dtype | str, options: dict[str, Any]) -> int | None:
    """How much memory a model's weights take in a dtype, from the headers of its files; nothing is loaded.

    `None` where nothing says it: neither local files, nor the hub's headers of safetensors.
    """
    at_hand = options | {"local_files_only": True}
    try:
        if adapter := json_of(where, "adapter_config.json", at_hand):
            own = [found for name in _ADAPTER if (found := file_of(where, name, at_hand)) is not None]
            base_where, local = locate(adapter["base_model_name_or_path"])
            base = weight_bytes(base_where, dtype, source(local))
            return None if base is None else base + sum(file.stat().st_size for file in own)
        config = json_of(where, "config.json", options)
        target = _target(config, dtype)
        try:
            files = weight_files(where, at_hand)
        except OSError:
            return None if Path(where).exists() else _on_the_hub(where, target, options)
        stored = _target(config, "auto")
        return sum(_in_file(file, target, stored) for file in files)
    except (OSError, ValueError, KeyError):
        return None


def _target(config: dict[str, Any], dtype: torch.dtype | str) -> int | None:
    """Bytes of a floating-point number once loaded; `None` for what it is stored as."""
    if isinstance(dtype, torch.dtype):
        return dtype.itemsize
    said = getattr(torch, str(config.get("dtype") or config.get("torch_dtype") or ""), None)
    return said.itemsize if isinstance(said, torch.dtype) else None


def _in_file(file: Path, target: int | None, stored: int | None) -> int:
    if file.suffix == ".safetensors":
        return sum(_size(kind, count, target) for kind, count in _header(file))
    return file.stat().st_size * (target or 1) // (stored or target or 1)


def _header(file: Path) -> Iterator[tuple[str, int]]:
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        for name in opened.keys():  # noqa: SIM118 - it is no mapping
            part = opened.get_slice(name)
            yield part.get_dtype(), math.prod(part.get_shape())


def _on_the_hub(where: str, target: int | None, options: dict[str, Any]) -> int | None:
    from huggingface_hub import get_safetensors_metadata
    from huggingface_hub.errors import HfHubHTTPError, NotASafetensorsRepoError, SafetensorsParsingError

    asked = {k: v for k, v in hub_options(options).items() if k in ("revision", "token")}
    if options.get("local_files_only"):
        return None
    try:
        counts = get_safetensors_metadata(where, **asked).parameter_count
    except (HfHubHTTPError, NotASafetensorsRepoError, SafetensorsParsingError):
        return None
    return sum(_size(kind, count, target) for kind, count in counts.items())


def _size(kind: str, count: int, target: int | None) -> int:
    if kind in _FLOATS:
        return count * (target or _FLOATS[kind])
    return count * _OTHERS[kind]
