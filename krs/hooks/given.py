"""What a caller handed in where a model is wanted."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from torch import nn

from krs.errors import KrsError


@runtime_checkable
class Traced(Protocol):
    """A model around another one whose forwards it traces: nnsight's, and nnterp's."""

    _module: nn.Module


def traced(given: Any, side: str = "the model") -> Any:
    """The model inside an nnsight model (nnterp's are some); anything else as it is.

    Raises `KrsError` for one whose weights are not loaded yet, and for one with edits, which act in its traces only.
    """
    library = sys.modules.get("nnsight.intervention.envoy")
    if library is None or not isinstance(given, library.Envoy):
        return given
    if getattr(given, "_edits", None) or getattr(given, "_default_mediators", None):
        raise KrsError(
            f"{side} is an nnsight model with edits, which act in its own traces and nowhere else: call "
            f"{side}.clear_edits(), or put the change into the weights"
        )
    inner = given._module
    if not hasattr(inner, "hf_device_map") and any(p.device.type == "meta" for p in inner.parameters()):
        raise KrsError(f"{side} is an nnsight model without its weights: load it with dispatch=True")
    return inner


def check_model(given: object, side: str = "the model") -> None:
    """Raise `KrsError`, naming what it is and what to pass, unless `given` is a model."""
    if isinstance(given, nn.Module):
        return
    name = type(given).__name__
    if isinstance(given, tuple) and given and isinstance(given[0], nn.Module):
        raise KrsError(
            f"{side} is a tuple: krs.load returns two things, the model and its tokenizer; write "
            "model, tokenizer = krs.load(…) and pass the model"
        )
    if given is None:
        raise KrsError(f"{side} is None, not a model: {_WANTED}")
    if isinstance(given, type):
        raise KrsError(f"{side} is the class {given.__name__}, not a model: pass what its from_pretrained returns")
    if hasattr(given, "apply_chat_template"):
        raise KrsError(f"{side} is a tokenizer ({name}), not a model: pass the model, and this as tokenizer=")
    if isinstance(getattr(given, "model", None), nn.Module):
        raise KrsError(f"{side} is a {name}, not a model: pass the model in it, its attribute .model")
    if isinstance(given, Sequence):
        raise KrsError(f"{side} is a {name}, not a model: pass the models first, then the prompts")
    raise KrsError(f"{side} is a {name}, not a model: {_WANTED}")


_WANTED = "pass a transformers causal LM, a TransformerLens bridge, a PEFT model, or a name that krs.load understands"
