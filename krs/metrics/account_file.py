"""Files of accounts: safetensors with a JSON header, written in one step, checked when read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from krs.errors import KrsError
from krs.metrics.weight_units import parts_of
from krs.wording import kind
from krs.writing import write_bytes

_FORMAT = 1
_KEY = "krs.account"
_NUMBERS = ("unit_parts", "parts", "change", "loss")
_HEADER: dict[str, type] = {"points": int, "tied": bool, "notes": list, "provenance": dict}


Fields = Mapping[str, Any]
"""What an `Account` has, by name."""


def save(account: Fields, unrelated: Fields | None, path: Path, overwrite: bool) -> Path:
    """Write an account and that of its unrelated prompts; `read` has them again."""
    from safetensors.numpy import save as as_bytes

    if path.exists() and not overwrite:
        raise KrsError(f"{str(path)!r} exists already: choose another name, or save(path, overwrite=True)")
    header, arrays = _described(account, "")
    if unrelated is not None:
        header["unrelated"], more = _described(unrelated, "unrelated.")
        arrays |= more
    write_bytes(path, as_bytes(arrays, metadata={_KEY: json.dumps(header | {"format": _FORMAT})}))
    return path


def read(path: str | Path) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """What `save` wrote; raises `KrsError` for anything else, and for less than all of it."""
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise KrsError(f"no file {str(path)!r}")
    try:
        with safe_open(path, framework="numpy") as file:
            header = json.loads((file.metadata() or {})[_KEY])
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        if header["format"] > _FORMAT:
            raise KrsError(f"this account was saved by a newer krs (format {header['format']}): update krs to read it")
        other = header.get("unrelated")
        unrelated = None if other is None else _fields(other, arrays, "unrelated.")
        return _fields(header, arrays, ""), unrelated
    except (SafetensorError, KeyError, TypeError, ValueError, IndexError, AttributeError) as reason:
        raise KrsError(
            f"{str(path)!r} is not an account that krs saved ({reason}): give another file, or make it again"
        ) from None


def _described(account: Fields, prefix: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    places, token_ids = account["places"], account["token_ids"]
    names = list(dict.fromkeys(component for component, _, _ in places))
    arrays = {name: np.ascontiguousarray(account[name]) for name in _NUMBERS}
    arrays["places"] = np.array([(names.index(c), layer, unit) for c, layer, unit in places], dtype=np.int64)
    flat = [token for pair in token_ids for ids in pair for token in ids]
    arrays["tokens"] = np.array(flat, dtype=np.int64)
    arrays["lengths"] = np.array([[len(ids) for ids in pair] for pair in token_ids], dtype=np.int64)
    header = {name: account[name] for name in _HEADER} | {"components": names}
    return header, {prefix + name: values for name, values in arrays.items()}


def _fields(header: dict[str, Any], arrays: dict[str, np.ndarray], prefix: str) -> dict[str, Any]:
    found = {name.removeprefix(prefix): values for name, values in arrays.items() if name.startswith(prefix)}
    _check_whole(found)
    places = tuple((header["components"][c], int(layer), int(unit)) for c, layer, unit in found["places"])
    numbers: dict[str, Any] = {name: found[name] for name in _NUMBERS}
    n = len(numbers["loss"])
    shapes = {"unit_parts": (len(places),), "change": (len(places),), "loss": (n,), "parts": (n, len(parts_of(places)))}
    for name, shape in shapes.items():
        if numbers[name].shape != shape or numbers[name].dtype != np.float64:
            raise ValueError(f"{name!r} is {numbers[name].dtype} {list(numbers[name].shape)}")
    for name, fits in _HEADER.items():
        if not isinstance(header[name], fits):
            raise TypeError(f"{name!r} is {kind(header[name])} in its header")
    if found["lengths"].shape != (n, 2) or found["lengths"].sum() != len(found["tokens"]):
        raise ValueError(f"'lengths' is {list(found['lengths'].shape)} for {n} prompts")
    ids = iter(np.split(found["tokens"], np.cumsum(found["lengths"].reshape(-1))[:-1]))
    token_ids = tuple((tuple(map(int, next(ids))), tuple(map(int, next(ids)))) for _ in range(n))
    rest: dict[str, Any] = {name: header[name] for name in _HEADER} | {"notes": tuple(header["notes"])}
    return {"places": places, **numbers, **rest, "token_ids": token_ids}


def _check_whole(found: dict[str, np.ndarray]) -> None:
    """Raise `ValueError` for indices and token ids that are none."""
    for name, width in (("places", 3), ("lengths", 2), ("tokens", None)):
        values = found[name]
        right = values.ndim == 1 if width is None else values.ndim == 2 and values.shape[1] == width
        if not right or values.dtype != np.int64 or (name != "places" and values.min(initial=0) < 0):
            raise ValueError(f"{name!r} is {values.dtype} {list(values.shape)}")
