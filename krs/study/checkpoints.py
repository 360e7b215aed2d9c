"""What is known of a model from its files alone, without loading it."""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path
from typing import Any

from krs.errors import KrsError
from krs.models.identity import combined, file_identity, identity
from krs.models.load import load
from krs.models.places import locate

_BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2}


def files_of(name: str) -> Path | None:
    """The directory with a model's files; `None` for a hub id that has not been fetched yet."""
    where, local = locate(name)
    if local:
        return Path(where)
    from transformers.utils import cached_file

    found = cached_file(
        name,
        "config.json",
        local_files_only=True,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return None if found is None else Path(found).parent


def has_safetensors(folder: Path) -> bool:
    """Whether a directory holds a whole model as safetensors."""
    return not (folder / "adapter_config.json").is_file() and any(folder.glob("*.safetensors"))


def identity_of(name: str) -> dict[str, Any]:
    """Which model a name stands for now, as JSON: every byte of it, and its configuration."""
    folder = files_of(name)
    if folder is not None and has_safetensors(folder):
        return _read(folder, _stamp(folder))
    found = identity(load(name)[0])
    return {k: found[k] for k in ("kind", "weights", "config", "adapters")} | {"tokenizer": _tokenizer(folder)}


@functools.lru_cache(maxsize=64)
def _read(folder: Path, _stamped: tuple[Any, ...]) -> dict[str, Any]:
    found = file_identity(folder)
    return {k: found[k] for k in ("kind", "weights", "config")} | {"tokenizer": _tokenizer(folder)}


def _stamp(folder: Path) -> tuple[Any, ...]:
    files = (p for p in sorted(folder.iterdir()) if p.is_file())
    return tuple((p.name, s.st_size, s.st_mtime_ns, s.st_ino) for p in files for s in [p.stat()])


def _tokenizer(folder: Path | None) -> str:
    """A digest of the tokenizer's files, on which prompts and answers depend."""
    if folder is None:
        return ""
    names: tuple[str, ...] = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "spiece.model")
    names += ("tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "generation_config.json")
    return combined({n: (folder / n).read_bytes().hex() for n in names if (folder / n).is_file()})


def size_of(name: str) -> tuple[int, int] | None:
    """Parameters and bytes of a model, from the headers of its files; `None` where they cannot be known so."""
    try:
        folder = files_of(name)
    except KrsError:
        return None
    if folder is None or not has_safetensors(folder):
        return None
    parameters = size = 0
    for file in folder.glob("*.safetensors"):
        with file.open("rb") as opened:
            header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
        for about in (v for k, v in header.items() if k != "__metadata__"):
            parameters += math.prod(about["shape"])
            size += math.prod(about["shape"]) * _BYTES.get(about["dtype"], 1)
    return parameters, size
