"""What made a result, so that it can be traced and made again."""

from __future__ import annotations

import hashlib
import json
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import nn

from krs.models.pair import dtype_of

_SAMPLES = 64


def describe_model(given: object, model: nn.Module) -> dict[str, Any]:
    """What is known of one side: where it came from and what it is."""
    config: Any = model.config
    return {
        "given_as": given if isinstance(given, str) else type(given).__name__,
        "name_or_path": str(getattr(config, "_name_or_path", "") or ""),
        "revision": getattr(config, "_commit_hash", None),
        "class": type(model).__name__,
        "model_type": config.model_type,
        "dtype": dtype_of(model),
        "device": str(next(model.parameters()).device),
        "attention": getattr(config, "_attn_implementation", None),
        "parameters": sum(p.numel() for p in model.parameters()),
        "weights_sample_sha256": weights_digest(model),
    }


def weights_digest(model: nn.Module) -> str:
    """A hash over every parameter's name, shape and 64 evenly spaced values.

    Quick at any size, and different as soon as training has moved a parameter as a whole; it is not a hash of all
    the bytes. Offloaded parameters count by name and shape.
    """
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(f"{name}{tuple(parameter.shape)}{parameter.dtype}".encode())
        if parameter.device.type == "meta":
            continue
        flat = parameter.detach().reshape(-1)
        picked = flat[:: max(1, flat.numel() // _SAMPLES)][:_SAMPLES]
        digest.update(picked.float().cpu().numpy().tobytes() if picked.is_floating_point() else b"")
    return digest.hexdigest()


def tokenizer_name(tokenizer: Any) -> str | None:
    """What a tokenizer calls itself."""
    return None if tokenizer is None else str(getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__)


def versions() -> dict[str, str]:
    """Versions of what takes part in the numbers."""
    found = {"python": platform.python_version()}
    for package in ("krs", "torch", "transformers", "numpy", "peft", "transformer-lens", "accelerate"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


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
