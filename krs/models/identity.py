"""Which model is this? A digest of every byte of it, so that no result of one model answers for another.

Every parameter and persistent buffer counts by name, shape, dtype and content, wherever it is: in memory, on a GPU,
packed by a quantiser, or left on the disk by `accelerate`. Beside the bytes stands what else decides what a model
computes: its configuration, and which adapters act with which scale.

The digest is XXH3-128, which reads memory as fast as the machine can. It tells models apart; it does not protect from
somebody who makes two on purpose that collide. Nothing is remembered between calls, for a model in memory may change.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import Tensor, nn

from krs.errors import KrsError
from krs.hooks.unwrap import unwrap

_SLICE = 2**26
_NOT_THE_NUMBERS = {
    *("_name_or_path", "_commit_hash", "transformers_version", "architectures", "dtype", "torch_dtype"),
    *("use_cache", "return_dict", "output_hidden_states", "output_attentions", "output_router_logits", "pad_token_id"),
    *("id2label", "label2id", "problem_type"),
}
"""Of a configuration: what changes no logit, or is in the weights already."""


def identity(model: nn.Module) -> dict[str, Any]:
    """What makes a loaded model this one and no other.

    >>> from torch import nn
    >>> layer = nn.Linear(2, 2)
    >>> before = identity(layer)
    >>> layer.weight.data[1, 0] += 1e-6
    >>> differing(before, identity(layer))
    ['weights']

    Returns a dict that JSON can hold: `kind` (`"loaded"`), `weights` (the digest), `tensors` and `bytes` (how many went
    into it), `config` (what changes numbers in it) and `adapters` (by module: active, merged, scales). Parameters that
    are tied count once, under the name that `save_pretrained` keeps, so that a checkpoint of safetensors has the same
    digest as the model that is loaded from it in its own dtype (`file_identity`).

    Raises `KrsError` for weights that are neither in memory nor where `accelerate` keeps them.
    """
    plain = unwrap(model) if hasattr(model, "config") else model
    found = {name: _told(value) for name, value in _tensors(plain)}
    for copy, original in getattr(plain, "all_tied_weights_keys", {}).items():
        if copy in found and found[copy] == found.get(original):
            del found[copy]
    config = getattr(plain, "config", None)
    return _identity("loaded", found, {} if config is None else config.to_dict(), adapters(plain))


def file_identity(folder: str | Path) -> dict[str, Any]:
    """The same of a directory with safetensors, without loading a model; `kind` is `"files"`.

    The digest is that of the model loaded from it where loading changes neither dtypes nor names. Where it does,
    two kinds cannot be compared, and `differing` says so.

    Raises `KrsError` for a directory without safetensors, and for an adapter's, which is no model by itself.
    """
    from safetensors import safe_open

    place = Path(folder)
    files = sorted(place.glob("*.safetensors"))
    if (place / "adapter_config.json").is_file():
        raise KrsError(
            f"{str(folder)!r} holds an adapter, which is no model by itself: load it, and take identity(model)"
        )
    if not files or not (place / "config.json").is_file():
        raise KrsError(
            f"{str(folder)!r} holds no config.json with safetensors beside it: load the model, and take identity(model)"
        )
    found: dict[str, dict[str, Any]] = {}
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - not a mapping
                found[name] = _told(tensors.get_tensor(name))
    return _identity("files", found, json.loads((place / "config.json").read_text(encoding="utf-8")), {})


def differing(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """In what two identities differ, in words; nothing for the same model."""
    found = []
    if a["weights"] != b["weights"]:
        kinds = "" if a["kind"] == b["kind"] else f" (one is of {a['kind']} weights, the other of {b['kind']})"
        found.append(f"weights{kinds}")
    if a["kind"] == b["kind"] == "loaded":
        ours, theirs = a["config"], b["config"]
        names = sorted(k for k in ours.keys() | theirs.keys() if ours.get(k) != theirs.get(k))
        found += [f"config.{name}" for name in names]
        found += ["adapters"] if a["adapters"] != b["adapters"] else []
    return found


def tensor_digest(value: Tensor) -> str:
    """XXH3-128 of a tensor's bytes, in the dtype that it has."""
    digest = xxhash.xxh3_128()
    flat = value.detach()
    flat = (torch.view_as_real(flat) if flat.is_complex() else flat).reshape(-1)
    step = max(1, _SLICE // flat.element_size())
    for start in range(0, flat.numel(), step):
        part = flat[start : start + step].cpu().contiguous()
        digest.update(part.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def combined(parts: Mapping[str, Any], more: Any = None) -> str:
    """One digest of many, whatever order they come in."""
    return xxhash.xxh3_128(json.dumps([sorted(parts.items()), more], sort_keys=True).encode()).hexdigest()


def named_digests(model: nn.Module, of: Callable[[str], bool] = lambda _: True) -> dict[str, str]:
    """Of each parameter and persistent buffer whose name is wanted: a digest of its shape, dtype and bytes."""
    return {name: combined(_told(value)) for name, value in _tensors(model, of)}


def config_that_counts(config: Mapping[str, Any]) -> dict[str, Any]:
    """What of a configuration may change numbers, as JSON gives it back."""
    plain = json.loads(json.dumps(dict(config), sort_keys=True, default=str))
    return {k: _that_counts(v) for k, v in plain.items() if k not in _NOT_THE_NUMBERS}


def _that_counts(value: Any) -> Any:
    return config_that_counts(value) if isinstance(value, dict) else value


def _identity(
    kind: str, found: dict[str, dict[str, Any]], config: Mapping[str, Any], adapters: dict[str, Any]
) -> dict[str, Any]:
    return {
        "kind": kind,
        "weights": f"xxh3-128:{combined(found)}",
        "tensors": len(found),
        "bytes": sum(told["bytes"] for told in found.values()),
        "config": config_that_counts(config),
        "adapters": adapters,
    }


def _told(value: Any) -> dict[str, Any]:
    """Shape, dtype and digest of one entry of a state dict; of a packed one, of what it is made of."""
    if isinstance(value, Tensor):
        about: dict[str, Any] = {"shape": list(value.shape), "dtype": str(value.dtype)}
        if (parts := _parts(value)) is None:
            return about | {"digest": tensor_digest(value), "bytes": value.numel() * value.element_size()}
        return about | _told(parts)
    if isinstance(value, Mapping | tuple | list):  # a module's `extra_state`, such as packed weights
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        told = {str(name): _told(part) for name, part in items}
        return {"parts": told, "bytes": sum(part["bytes"] for part in told.values())}
    plain = isinstance(value, str | bytes | int | float | None | torch.dtype | torch.Size | torch.qscheme)
    return {"value": repr(value) if plain else f"nobody knows: {uuid.uuid4()}", "bytes": 0}


def _parts(value: Tensor) -> dict[str, Any] | None:
    """What a tensor that is packed is made of; `None` for one that has its bytes itself."""
    if value.is_quantized:
        scheme = value.qscheme()
        if scheme in (torch.per_tensor_affine, torch.per_tensor_symmetric):
            return {"values": value.int_repr(), "scale": value.q_scale(), "zero": value.q_zero_point()}
        scales = {"scales": value.q_per_channel_scales(), "zeros": value.q_per_channel_zero_points()}
        return {"values": value.int_repr(), **scales, "axis": value.q_per_channel_axis()}
    if hasattr(value, "__tensor_flatten__"):
        names, settings = value.__tensor_flatten__()
        return {"settings": settings, **{name: getattr(value, name) for name in names}}
    return None


def _tensors(model: nn.Module, of: Callable[[str], bool] = lambda _: True) -> Iterator[tuple[str, Any]]:
    """The state dict's entries; of several names for one tensor the first, offloaded ones read from where they are."""
    seen: set[int] = set()
    away = _offloaded(model)
    for name, value in model.state_dict(keep_vars=True).items():
        if id(value) in seen or not of(name):
            continue
        if isinstance(value, Tensor):
            seen.add(id(value))
            if value.device.type == "meta":
                if name not in away:
                    raise KrsError(
                        f"the weights of {name!r} are not in memory, and accelerate does not say where they are: load "
                        "the model with krs.load"
                    )
                where, key = away[name]
                yield name, where[key]
                continue
        yield name, value


def _offloaded(model: nn.Module) -> dict[str, tuple[Any, str]]:
    """Where accelerate's hooks read each parameter and buffer that they keep elsewhere: a map, and a name in it."""
    found: dict[str, tuple[Any, str]] = {}
    for path, module in model.named_modules():
        hook = getattr(module, "_hf_hook", None)
        for one in getattr(hook, "hooks", [hook]):
            where = getattr(one, "weights_map", None)
            if not getattr(one, "offload", False) or where is None:
                continue
            for name, value in module.state_dict(keep_vars=True).items():
                if isinstance(value, Tensor) and value.device.type == "meta":
                    found.setdefault(f"{path}.{name}" if path else name, (where, name))
    return found


def adapters(model: nn.Module) -> dict[str, Any]:
    """Of each module with PEFT adapters: which act, whether they are switched off or merged, and with what scale."""
    found = {}
    for path, module in model.named_modules():
        if not hasattr(module, "active_adapters") or not hasattr(module, "base_layer"):
            continue
        names = ("active_adapters", "disable_adapters", "merged_adapters", "scaling", "use_dora", "fan_in_fan_out")
        facts = {name: getattr(module, name, None) for name in names}
        found[path] = json.loads(json.dumps(facts, sort_keys=True, default=str))
    return found
