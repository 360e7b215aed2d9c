"""One way to load a model by name: the bundled one, a directory, a GGUF file, a hub id."""

from __future__ import annotations

import shutil
import tempfile
import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import nn

from krs._typing import Tokenizer
from krs.errors import KrsError
from krs.extras import require
from krs.hooks.context import plain_numerics
from krs.models.checkpoints import read_weights
from krs.models.devices import pick_device, pick_dtype
from krs.models.hub import HUB_OPTIONS, hub_options, json_of, offline, source
from krs.models.olmo import is_original, to_config, to_transformers
from krs.models.places import locate
from krs.models.tokenizers import find_tokenizer, tokenizer_beside
from krs.names import BUNDLED, nowhere

__all__ = ["BUNDLED", "find_tokenizer", "load", "quiet"]


@plain_numerics()
def load(
    name: str | Path,
    *,
    dtype: torch.dtype | str = "auto",
    device: str | torch.device | None = None,
    offload: str | None = None,
    **options: Any,
) -> tuple[nn.Module, Tokenizer | None]:
    """Load a causal language model and its tokenizer, ready to be swept.

    >>> import krs
    >>> model, tokenizer = krs.load("smollm2")

    Args:
        name: `"smollm2"` (the bundled SmolLM2-135M-Instruct), a local directory (a PEFT adapter's too), a GGUF file,
            or a hub id such as `"allenai/OLMo-7B-hf"` (an adapter's too). A local path never reaches for the network,
            unless it is an adapter's whose base is on the hub. Checkpoints in the layout of `ai2-olmo` are loaded as
            transformers' OLMo.
        dtype: a torch dtype or its name; `"auto"` is the checkpoint's own (fp32 for GGUF files and the bundled model).
        device: where to put it: `"cuda:1"`, `"xpu"`, `"mps"` …, or `"auto"` for the GPU where there is one; the CPU
            if not given.
        offload: `"disk"` leaves the weights in the checkpoint; `accelerate` reads each module's when it is called.
        options: passed on to `from_pretrained` (`device_map=`, `revision=`, `token=`, `attn_implementation=` …). An
            adapter's base is loaded with the same, but for `revision=`, which is the adapter's own.

    Returns the model in eval mode and the tokenizer (`None` where none lies beside it). Raises `KrsError` for a path
    that does not exist, a directory that holds no model, a device that is not there, and a hub id that cannot be had.
    """
    dtype = pick_dtype(dtype)
    place = None if device is None else pick_device(device)
    if offload is not None:
        options |= _offloading(offload, options, device)
    where, local = locate(name)
    options |= source(local)
    try:
        with offline(options):
            adapter = json_of(where, "adapter_config.json", options)
        base, base_tokenizer = _base(str(name), adapter, dtype, options) if adapter else (None, None)
        with offline(options), quiet(local):
            tokenizer = tokenizer_beside(where, options)
            model = _model(where, dtype, options) if base is None else _adapted(base, where, tokenizer, options)
    except KrsError:
        raise
    except UnpicklingError:
        raise KrsError(
            f"the weights in {str(name)!r} are a pickle that holds more than tensors, and reading it would run code of "
            "whoever wrote it: ask for safetensors"
        ) from None
    except (OSError, ValueError, ImportError) as reason:
        raise KrsError(_cannot_load(str(name), local, options, reason)) from None
    if "offload_folder" in options:
        weakref.finalize(model, shutil.rmtree, options["offload_folder"], ignore_errors=True)
    if place is not None and offload is None and "device_map" not in options:
        model.to(place)
    return model.eval(), tokenizer if tokenizer is not None else base_tokenizer


def _offloading(offload: str, options: dict[str, Any], device: object) -> dict[str, Any]:
    """What `from_pretrained` needs to leave a checkpoint's weights where they are."""
    if offload != "disk":
        raise KrsError(f"offload={offload!r}: give 'disk', or load with device_map= for anything else")
    if "device_map" in options:
        raise KrsError("offload='disk' and device_map= are two ways to say where weights are: give one of them")
    if device is not None and str(device) not in ("auto", "cpu"):
        raise KrsError(f"offload='disk' computes on the CPU, so device={str(device)!r} would be ignored: leave it out")
    require("accelerate", "unlearn", "offload='disk'")
    return {"device_map": {"": "disk"}, "offload_folder": tempfile.mkdtemp(prefix="krs-offload-")}


def _model(where: str, dtype: torch.dtype | str, options: dict[str, Any]) -> nn.Module:
    from transformers import AutoModelForCausalLM

    if is_original(config := json_of(where, "config.json", options)):
        return _original_olmo(where, config, dtype, options)
    return AutoModelForCausalLM.from_pretrained(where, dtype=dtype, **options)


def _base(
    name: str, adapter: dict[str, Any], dtype: torch.dtype | str, options: dict[str, Any]
) -> tuple[nn.Module, Tokenizer | None]:
    """What a PEFT adapter is for, loaded as the caller wants the adapter loaded."""
    require("peft", "unlearn", f"{name!r}, a PEFT adapter,")
    base_name = adapter.get("base_model_name_or_path")
    if not base_name:
        raise KrsError(f"the adapter {name!r} does not say what model it is for: load that one and merge them yourself")
    inherited = {k: v for k, v in options.items() if k not in ("revision", "local_files_only")}
    if adapter.get("revision"):
        inherited["revision"] = adapter["revision"]
    try:
        return load(base_name, dtype=dtype, **inherited)
    except KrsError as reason:
        raise KrsError(f"{name!r} is an adapter, and its base cannot be loaded: {reason}") from None


def _adapted(base: nn.Module, where: str, own: Tokenizer | None, options: dict[str, Any]) -> nn.Module:
    """An adapter over its base."""
    from peft import PeftModelForCausalLM

    rows: int = base.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
    if own is not None and len(own) > rows:  # an adapter with tokens of its own brings their embeddings
        base.resize_token_embeddings(len(own))  # type: ignore[operator]
    passed = {k: v for k, v in hub_options(options).items() if k != "trust_remote_code"}
    if "offload_folder" in options:
        passed["offload_folder"] = options["offload_folder"]
    with peft_by_its_old_name():
        return PeftModelForCausalLM.from_pretrained(base, where, **passed)


@contextmanager
def peft_by_its_old_name() -> Iterator[None]:
    """Inside, peft 0.21 may ask transformers 5.23 for `is_gradient_checkpointing` without a warning of its new name."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        yield


def _original_olmo(where: str, config: dict[str, Any], dtype: torch.dtype | str, options: dict[str, Any]) -> nn.Module:
    """A checkpoint in the layout of `ai2-olmo` as transformers' OLMo."""
    from transformers import OlmoConfig, OlmoForCausalLM

    if "offload_folder" in options:
        raise KrsError(
            "an ai2-olmo checkpoint cannot be read layer by layer: load it, save_pretrained it to a directory, and "
            "give that with offload='disk'"
        )
    ours = OlmoConfig(**to_config(config))
    ours.name_or_path = where
    passed = {k: v for k, v in options.items() if k not in HUB_OPTIONS}
    weights = to_transformers(read_weights(where, options), ours)
    if dtype == "auto":
        dtype = next(iter(weights.values())).dtype
    return OlmoForCausalLM.from_pretrained(None, config=ours, state_dict=weights, dtype=dtype, **passed)


@contextmanager
def quiet(local: bool = True) -> Iterator[None]:
    """No bar for reading or writing a local checkpoint, which takes a moment; downloads keep theirs."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    if local:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if local and shown:
            logging.enable_progress_bar()


def _cannot_load(name: str, local: bool, options: dict[str, Any], reason: Exception) -> str:
    first = str(reason).strip().splitlines()[0] if str(reason).strip() else type(reason).__name__
    if local:
        return f"cannot load the model in {name!r}: {first}"
    return nowhere(name, None if options.get("local_files_only") else first)
