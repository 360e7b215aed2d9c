"""PEFT's adapters as part of the weights: what merging would make of a layer, checked against the layer itself."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from krs.errors import KrsError
from krs.hooks.linear import agrees, own_map, states_for
from krs.hooks.unwrap import core, is_adapter, plain_modules, unwrap

_REMEDY = "merge the adapters yourself (merge_and_unload()) and check that the merged model says the same"


def has_adapters(model: nn.Module) -> bool:
    """Whether some module of the model has an adapter around it."""
    return any(is_adapter(module) for _, module in plain_modules(model))


@torch.no_grad()
def merged_layer(module: nn.Module, path: str) -> nn.Module:
    """A plain module that does what `module` does with its adapters as they are: active, switched off, or merged.

    Peft merges a copy of the layer; `module` stays as it is. Raises `KrsError` where the copy, merged, does something
    else: an adapter that cannot be merged (its weight depends on the input), or not exactly (a packed weight).
    """
    narrow = [p.dtype for p in module.parameters() if p.dtype in (torch.bfloat16, torch.float16)]
    whole = _merge(_bare_copy(module), path)
    wide = _merge(_bare_copy(module).float(), path) if narrow else whole
    again = _bare_copy(module).float() if narrow else _bare_copy(module)
    if not _same(again, wide):
        raise KrsError(
            f"{path}: peft's merged {type(module).__name__} does not do what the unmerged one does, so its weight is "
            f"unknown: {_REMEDY}"
        )
    return whole.requires_grad_(False)


def merged(model: nn.Module) -> nn.Module:
    """A copy of the model in which every adapter, as it is now, is merged; `model` stays as it is.

    >>> import krs
    >>> from krs.hooks.adapters import merged
    >>> model, _ = krs.load("smollm2")
    >>> merged(model) is model           # nothing to merge: a copy all the same
    False

    Raises `KrsError` for an adapter that cannot be merged exactly.
    """
    plain = unwrap(model)
    memo: dict[int, Any] = {}
    for path, module in plain_modules(plain):
        if is_adapter(module):
            memo[id(module)] = merged_layer(module, path)
    made = copy.deepcopy(plain, memo)
    for name in ("peft_config", "_hf_peft_config_loaded"):
        made.__dict__.pop(name, None)
    _untie(made)
    return made


def _untie(model: nn.Module) -> None:
    """Say in the config that the head is no longer the embedding, where merging has parted them."""
    config: Any = getattr(model, "config", None)
    if not getattr(config, "tie_word_embeddings", False):
        return
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()  # type: ignore[operator]
    if head is not None and head.weight is not embedding.weight:
        config.tie_word_embeddings = False


def _bare_copy(module: nn.Module) -> Any:
    """A copy in eval mode, without hooks; what accelerate keeps for offloaded weights is not copied."""
    memo = {id(m._hf_hook): m._hf_hook for m in module.modules() if hasattr(m, "_hf_hook")}
    twin = copy.deepcopy(module, memo).eval()
    for part in twin.modules():
        for name in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
            getattr(part, name).clear()
        for name in ("forward", "_hf_hook", "_old_forward"):
            part.__dict__.pop(name, None)
    return twin


def _merge(twin: Any, path: str) -> nn.Module:
    """The copy's base module, after peft has merged what is active in it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _merged(twin)
    except (NotImplementedError, RuntimeError, TypeError, ValueError, AttributeError) as reason:
        raise KrsError(
            f"{path}: peft cannot merge this {type(twin).__module__.rpartition('.')[0]}.{type(twin).__name__} "
            f"({str(reason) or type(reason).__name__}): {_REMEDY}"
        ) from None


def _merged(twin: Any) -> nn.Module:
    copies = getattr(twin, "modules_to_save", None)
    if isinstance(copies, nn.ModuleDict):
        active = [name for name in twin.active_adapters if name in copies]
        return core(twin) if twin.disable_adapters or not active else copies[active[0]]
    tokens = getattr(twin, "token_adapter", None)
    if tokens is not None:
        return _merged(tokens)
    if is_adapter(twin.base_layer):
        _merged(twin.base_layer)
    if twin.disable_adapters:
        if twin.merged:
            twin.unmerge()
    elif not twin.merged:
        twin.merge(safe_merge=True)
    base: nn.Module = twin.get_base_layer()
    return base


def _same(module: nn.Module, plain: nn.Module) -> bool:
    """Whether two modules make the same of a few inputs, to fp32's rounding."""
    found = own_map(plain)
    if found is not None and not isinstance(plain, nn.Embedding):
        return agrees(found, module)
    weight = next(plain.parameters())
    x: Tensor
    if isinstance(plain, nn.Embedding):
        x = torch.arange(plain.num_embeddings, device=weight.device)
    else:
        x = states_for(module, weight.shape[-1], weight)
    ours, theirs = module.forward(x).double(), plain.forward(x).double()
    return bool((ours - theirs).norm() <= 1e-5 * theirs.norm())
