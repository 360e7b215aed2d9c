"""The plain model inside what the caller handed in: a TransformerLens bridge, a PEFT model, an nnsight one.

None of these libraries is imported here: an object of theirs can only exist once the caller
has imported them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

from torch import nn

from krs.errors import KrsError
from krs.hooks.given import check_model, traced


def unwrap(model: object, side: str = "the model") -> nn.Module:
    """The `transformers` model inside `model`, whose submodules are the ones to hook.

    A TransformerLens bridge gives its `original_model` (the same weights; the bridge has put its own
    modules around the original ones, at the same paths). A PEFT model gives its base model, which the
    adapters are part of.

    Raises `KrsError` for a compiled model, for a bridge in compatibility mode (it has folded norms into
    weights and centred the unembedding, so its raw logits are no longer the model's), for a PEFT model whose
    adapter is no part of the base model's modules (virtual tokens, adapters that the tokens choose), and for anything
    that is not a `torch.nn.Module`.
    """
    model = traced(model, side)
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
    if _is_a(model, "peft", "PeftModel") or _is_a(model, "peft", "PeftMixedModel"):
        _refuse_adapters_outside_modules(model, side)
        mixed = _is_a(model, "peft", "PeftMixedModel")
        base: nn.Module = model.base_model.model if mixed else model.get_base_model()  # type: ignore[operator, union-attr, assignment]
        return base if _is_plain(base) else unwrap(base, side)
    _refuse_adapters_outside_modules(model, side)
    return model


def is_adapter(module: nn.Module) -> bool:
    """Whether peft has put `module` around another one, or in its place: an adapter, a retrained copy, new tokens."""
    return _is_a(module, "peft.tuners.tuners_utils", "BaseTunerLayer") or _is_a(
        module, "peft.utils.other", "AuxiliaryTrainingWrapper"
    )


def core(module: nn.Module) -> nn.Module:
    """The module that was there before a bridge's component or an adapter's layer was put around it."""
    inner = _inside(module)
    return module if inner is None else core(inner)


def outside(module: nn.Module) -> nn.Module:
    """The module that is called for its map: inside a bridge's component, but with its adapter around it."""
    inner = getattr(module, "original_component", None)
    return outside(inner) if isinstance(inner, nn.Module) else module


def plain_modules(root: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Modules by the path that they have without bridges and adapters.

    An adapter stands for the module that it is around, and is not entered; a bridge's component is passed through.
    """
    module = outside(root)
    yield prefix, module
    if is_adapter(module):
        return
    for name, child in module.named_children():
        yield from plain_modules(child, f"{prefix}.{name}" if prefix else name)


def plain_name(name: str) -> str:
    """A parameter's name without what bridges and adapters put into it."""
    for part in ("_original_component", "base_layer", "original_module", "token_adapter"):
        name = name.replace(f".{part}.", ".")
    return name


def _inside(module: nn.Module) -> nn.Module | None:
    for name in ("original_component", "base_layer"):
        inner = getattr(module, name, None)
        if isinstance(inner, nn.Module):
            return inner
    if is_adapter(module):
        inner = getattr(module, "original_module", None)
        return inner if isinstance(inner, nn.Module) else None
    return None


def _is_plain(base: nn.Module) -> bool:
    """Whether a PEFT model's base is a transformers model, whose adapters have been looked at already."""
    return isinstance(base, nn.Module) and not _is_compiled(base) and not hasattr(base, "get_base_model")


def _refuse_adapters_outside_modules(model: nn.Module, side: str) -> None:
    """Raise `KrsError` for what a base model on its own would leave out, or could not say for one token at a time."""
    configs = getattr(model, "peft_config", None)
    if not isinstance(configs, dict) or getattr(model, "_adapters_disabled", False):
        return
    active = getattr(model, "active_adapter", None)
    names = [active] if isinstance(active, str) else [*configs]
    for config in (configs[name] for name in names if name in configs):
        kind = str(getattr(config, "peft_type", "")).rpartition(".")[2]
        if reason := _outside_modules(config, kind):
            raise KrsError(
                f"{side} is a PEFT model with {reason}. Unlearn with an adapter that can be merged (LoRA …), or train "
                "the weights themselves"
            )


def _outside_modules(config: object, kind: str) -> str | None:
    if getattr(config, "is_prompt_learning", False):
        return f"virtual tokens ({kind}): they are no part of its weights, so it would be scored without them"
    if getattr(config, "is_adaption_prompt", False) or kind == "SHADOW":
        return f"an adapter around whole blocks ({kind}), which adds to what their projections return"
    if kind in ("XLORA", "POLY"):
        return f"an adapter that is mixed anew for each input or task ({kind}), so its weights are no fixed ones"
    if getattr(config, "alora_invocation_tokens", None):
        return (
            "an activated LoRA, which acts behind certain tokens only, so its weights are not the same for every token"
        )
    return None


def _is_compiled(model: nn.Module) -> bool:
    return hasattr(model, "_orig_mod") or any(
        getattr(m, "_compiled_call_impl", None) is not None for m in model.modules()
    )


def _is_a(model: object, module: str, name: str) -> bool:
    loaded = sys.modules.get(module)
    return loaded is not None and isinstance(model, getattr(loaded, name, ()))
