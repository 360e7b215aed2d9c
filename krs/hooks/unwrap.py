"""The plain model inside what the caller handed in: a TransformerLens bridge, a PEFT model, a compiled one.

Neither TransformerLens nor peft is imported here: an object of theirs can only exist once the caller
has imported them.
"""

from __future__ import annotations

import sys

from torch import nn

from krs.errors import KrsError
from krs.hooks.given import check_model


def unwrap(model: object, side: str = "the model") -> nn.Module:
    """The `transformers` model inside `model`, whose submodules are the ones to hook.

    A TransformerLens bridge gives its `original_model` (the same weights; the bridge has put its own
    modules around the original ones, at the same paths). A PEFT model gives its base model, which the
    adapters are part of.

    Raises `KrsError` for a compiled model, for a bridge in compatibility mode (it has folded norms into
    weights and centred the unembedding, so its raw logits are no longer the model's), and for anything
    that is not a `torch.nn.Module`.
    """
    check_model(model, side)
    assert isinstance(model, nn.Module)
    if _is_compiled(model):
        raise KrsError(
            f"{side} is compiled, so hooks inside it may never fire: pass the model as it was before "
            "torch.compile (`compiled._orig_mod`, or load it again and do not call .compile())"
        )
    if _is_a(model, "transformer_lens.model_bridge", "TransformerBridge"):
        if getattr(model, "compatibility_mode", False):
            raise KrsError(
                f"{side} is a TransformerLens bridge in compatibility mode, which folds norms into weights "
                "and changes raw logits: make the bridge again without enable_compatibility_mode()"
            )
        return unwrap(model.original_model, side)
    if _is_a(model, "peft", "PeftModel"):
        base = model.get_base_model()  # type: ignore[operator]
        return unwrap(base, side)
    return model


def is_wrapped_linear(module: nn.Module) -> bool:
    """Whether an adapter (a peft tuner layer) sits around this projection."""
    return hasattr(module, "base_layer") and hasattr(module, "get_delta_weight")


def core(module: nn.Module) -> nn.Module:
    """The module that holds the weight: inside a bridge's component or an adapter's layer."""
    inner = getattr(module, "original_component", None)
    if isinstance(inner, nn.Module):
        return core(inner)
    inner = getattr(module, "base_layer", None)
    return core(inner) if isinstance(inner, nn.Module) else module


def _is_compiled(model: nn.Module) -> bool:
    return hasattr(model, "_orig_mod") or any(
        getattr(m, "_compiled_call_impl", None) is not None for m in model.modules()
    )


def _is_a(model: object, module: str, name: str) -> bool:
    loaded = sys.modules.get(module)
    return loaded is not None and isinstance(model, getattr(loaded, name, ()))
