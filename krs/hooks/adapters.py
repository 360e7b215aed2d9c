"""PEFT's adapters as part of the weights: what merging would make of a layer, checked against the layer itself."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from krs.errors import KrsError
from krs.hooks.linear import agrees, bare_copy, is_packed, own_map, states_for
from krs.hooks.offload import check_whole
from krs.hooks.unwrap import core, is_adapter, plain_modules, unwrap

_REMEDY = "merge the adapters yourself (merge_and_unload()) and check that the merged model says the same"


def has_adapters(model: nn.Module) -> bool:
    """Whether some module of the model has an adapter around it."""
    return any(is_adapter(module) for _, module in plain_modules(model))


def active_adapters(model: nn.Module) -> list[str]:
    """Names of the adapters that act in the model, merged or not, sorted."""
    found: set[str] = set()
    for _, module in plain_modules(model):
        if is_adapter(module) and not module.disable_adapters:
            found.update([*module.active_adapters, *getattr(module, "merged_adapters", ())])  # type: ignore[misc]
    return sorted(found)


@torch.no_grad()
def merged_layer(module: nn.Module, path: str) -> nn.Module:
    """A plain module that does what `module` does with its adapters as they are: active, switched off, or merged.

    Peft merges a copy of the layer; `module` stays as it is. Raises `KrsError` where the copy, merged, does something
    else: an adapter that cannot be merged (its weight depends on the input), or not exactly (a packed weight).
    """
    whole = _merge(bare_copy(module), path)
    if not _is_askable(whole):
        raise KrsError(
            f"{path}: whether peft's merged {type(whole).__name__} does what the unmerged one does cannot be seen from "
            f"outside: {_REMEDY}"
        )
    if not _merges_exactly(module, whole, path):
        raise KrsError(
            f"{path}: peft's merged {type(module).__name__} does not do what the unmerged one does, so its weight is "
            f"unknown: {_REMEDY}"
        )
    return whole.requires_grad_(False)


@torch.no_grad()
def merged(model: nn.Module) -> nn.Module:
    """A copy of the model in which every adapter, as it is now, is merged; `model` stays as it is.

    >>> import krs
    >>> from krs.hooks.adapters import merged
    >>> model, _ = krs.load("smollm2")
    >>> merged(model) is model           # nothing to merge: a copy all the same
    False

    Raises `KrsError` for an adapter that cannot be merged exactly, and when the copy's logits are not the model's.
    """
    plain = unwrap(model)
    memo: dict[int, Any] = {}
    for path, module in plain_modules(plain):
        if is_adapter(module):
            if is_packed(core(module)):
                raise KrsError(
                    f"{path} is packed (quantised), so its adapter cannot be merged exactly: load the model "
                    "unquantised (dtype=torch.bfloat16 halves its size too), with the adapter on it"
                )
            whole = _merge(bare_copy(module), path)
            memo[id(module)] = merged_layer(module, path) if _is_askable(whole) else whole.requires_grad_(False)
    adapted = bool(memo)  # deepcopy notes in it whatever it copies
    made = copy.deepcopy(plain, memo)
    for name in ("peft_config", "_hf_peft_config_loaded"):
        made.__dict__.pop(name, None)
    _retie(made)
    if adapted and not _says_the_same(plain, made):
        raise KrsError(f"the model with its adapters merged does not say what the unmerged one says: {_REMEDY}")
    return made


def changeable_copy(model: nn.Module, what: str) -> nn.Module:
    """A copy whose weights may be changed: its parameters are all that it computes with, adapters merged into them.

    `what` says what the copy is for. Raises `KrsError` for weights that are offloaded or packed (what would be written
    beside them is not the model's weights), and for an adapter that cannot be merged exactly.
    """
    check_whole(model, what)
    packed = next((path for path, module in plain_modules(model) if is_packed(core(module))), None)
    if packed is not None:
        raise KrsError(
            f"{what} needs a copy with ordinary weights, and {packed!r} is packed (quantised): load the models "
            "unquantised (dtype=torch.bfloat16 halves their size too)"
        )
    return merged(model) if has_adapters(model) else copy.deepcopy(model)


def _retie(model: nn.Module) -> None:
    """Tie the head to the embedding again if they are still alike, and say in the config if they are not."""
    config: Any = getattr(model, "config", None)
    if not getattr(config, "tie_word_embeddings", False):
        return
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()  # type: ignore[operator]
    if head is None or head.weight is embedding.weight:
        return
    if torch.equal(head.weight, embedding.weight):
        head.weight = embedding.weight
    else:
        config.tie_word_embeddings = False


def _says_the_same(model: nn.Module, other: nn.Module) -> bool:
    """Whether logits agree to rounding, on a few tokens."""
    embedding = core(model.get_input_embeddings()).weight  # type: ignore[operator]
    tokens = torch.arange(8, device=embedding.device)[None] % embedding.shape[0]  # type: ignore[arg-type, index]
    ours, theirs = (m(input_ids=tokens, use_cache=False).logits.cpu().double() for m in (model, other))
    narrow = next(p.dtype for p in other.parameters() if p.is_floating_point()) in (torch.bfloat16, torch.float16)
    return bool((ours - theirs).norm() <= (0.1 if narrow else 1e-4) * ours.norm())


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


def _is_askable(plain: nn.Module) -> bool:
    """Whether it is a projection, an embedding or a norm, of which one knows what to call it with."""
    weight = plain._parameters.get("weight")
    return own_map(plain) is not None or isinstance(plain, nn.Embedding) or (weight is not None and weight.dim() == 1)


def _merges_exactly(module: nn.Module, whole: nn.Module, path: str) -> bool:
    """Whether the merged layer makes the same of a few inputs as the layer itself, in fp32 or wider."""
    apart = bare_copy(module)
    if any(p.dtype in (torch.bfloat16, torch.float16) for p in module.parameters()):
        apart, whole = apart.float(), _merge(bare_copy(module).float(), path)
    found = own_map(whole)
    if found is not None and not isinstance(whole, nn.Embedding):
        return agrees(found, apart)
    weight = whole.weight
    assert isinstance(weight, Tensor)
    embedding = isinstance(whole, nn.Embedding)
    x = torch.arange(len(weight), device=weight.device) if embedding else states_for(len(weight), weight)
    ours, theirs = apart.forward(x).cpu().double(), whole.forward(x).cpu().double()
    return bool((ours - theirs).norm() <= 1e-5 * theirs.norm())
