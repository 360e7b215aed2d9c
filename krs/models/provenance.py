"""What made a result, so that it can be traced and made again."""

from __future__ import annotations

import functools
import json
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from krs.models.identity import combined, identity
from krs.models.pair import dtype_of

NUMBERS = 1
"""Raise this when krs itself comes to other numbers: what was begun before is not gone on with then."""

_COUNT = ("torch", "transformers", "peft", "transformer-lens")


def describe_model(given: object, model: nn.Module) -> dict[str, Any]:
    """What is known of one side: where it came from and what it is."""
    config: Any = model.config
    return {
        "given_as": str(given) if isinstance(given, str | Path) else type(given).__name__,
        "name_or_path": str(getattr(config, "_name_or_path", "") or ""),
        "revision": getattr(config, "_commit_hash", None),
        "class": type(model).__name__,
        "model_type": config.model_type,
        "dtype": dtype_of(model),
        "device": str(next(model.parameters()).device),
        "attention": getattr(config, "_attn_implementation", None),
        "parameters": sum(p.numel() for p in model.parameters()),
        "identity": identity(model),
    }


def weights_digest(model: nn.Module) -> str:
    """All of `krs.models.identity.identity` in one string."""
    return combined(identity(model))


def tokenizer_name(tokenizer: Any) -> str | None:
    """What a tokenizer calls itself."""
    return None if tokenizer is None else str(getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__)


def versions() -> dict[str, str]:
    """Versions of what takes part in the numbers."""
    found = {"python": platform.python_version()}
    for package in ("krs", "torch", "transformers", "numpy", "peft", "transformer-lens", "accelerate"):
        if (number := _version(package)) is not None:
            found[package] = number
    return found


@functools.cache
def _version(package: str) -> str | None:
    """As it was when it was first asked for: reading it takes as long as a forward of a small model."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def versions_that_count(found: dict[str, str]) -> dict[str, str]:
    """Of `versions()`, those under which numbers may differ: of libraries that compute them, without the last part."""
    return {name: ".".join(v.split("+")[0].split(".")[:2]) for name, v in found.items() if name in _COUNT}


def as_json(value: Any) -> Any:
    """A value as a JSON file holds it, what JSON has no form for as text."""
    return json.loads(json.dumps(value, default=str))


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def machine() -> dict[str, Any]:
    """The kind of machine, without anything that names it."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "system": platform.system(),
        "processor": platform.machine(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
    }
