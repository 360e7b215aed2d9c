"""The copy that is trained: its precision, which of its weights move, its adapter; and what becomes of it."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from krs.errors import KrsError, KrsWarning
from krs.hooks.anatomy import Anatomy, anatomy
from krs.hooks.components import component_of
from krs.hooks.linear import is_packed
from krs.models.load import peft_by_its_old_name
from krs.unlearn.config import Config
from krs.unlearn.preflight import broken

_NARROW = (torch.bfloat16, torch.float16)
_ENOUGH = 0.9
_WIDER = "load the model in fp32 (dtype=torch.float32, --dtype float32), whose copy keeps all"
_SUBSETS = {
    "value_vectors": {"value_vectors"},
    "attention": {"attention_in", "attention_out"},
    "mlp": {"keys", "value_vectors", "experts"},
}


def check_trainable(vanilla: nn.Module, config: Config, layers: Sequence[int] | None = None) -> None:
    """Raise `KrsError`, before anything runs, for a model that cannot be trained as the settings say."""
    packed = [f"{name}.weight" for name, module in vanilla.named_modules() if is_packed(module)]
    if packed:
        raise KrsError(
            f"{packed[0]!r} is packed (quantised) and cannot be trained: load the model unquantised "
            "(dtype=torch.bfloat16 halves its size too)"
        )
    missing = [name for name, p in vanilla.named_parameters() if p.device.type == "meta"]
    if missing:
        raise KrsError(f"{missing[0]!r} is offloaded: load the model without offload to train it")
    if config.precision == "bf16-pure" and not _fits_bf16(vanilla):
        raise KrsError(
            "precision='bf16-pure': the model's weights are not bf16 numbers, so that most would be rounded before the "
            "first step and look as if training had changed them: load it in bf16 (krs.load(name, "
            "dtype=torch.bfloat16), or --dtype bfloat16), or train in fp32"
        )
    wanted = _SUBSETS.get(config.parameters)
    if wanted is None and layers is None:
        return
    body = anatomy(vanilla)
    if layers is not None and max(layers) >= body.n_layers:
        raise KrsError(f"layers={list(layers)!r}: this model has {body.n_layers} layers, 0 to {body.n_layers - 1}")
    if wanted is not None and not any(_is_trained(body, n, wanted, layers) for n, _ in vanilla.named_parameters()):
        raise KrsError(
            f"parameters={config.parameters!r}: this {body.family.name} model has none of them "
            f"({', '.join(sorted(wanted))}): train another part, or say where they are (krs.hooks.register_family)"
        )


def context(vanilla: nn.Module, max_length: int) -> int:
    """To how many tokens texts are cut: `max_length`, or the model's context where that is shorter."""
    reach = getattr(vanilla.config, "max_position_embeddings", None)
    return max_length if reach is None else min(max_length, int(reach))


def depth(vanilla: Any) -> int:
    """How many layers a model has, by its configuration: of families that krs does not know, too."""
    return int(vanilla.config.num_hidden_layers)


def make_student(vanilla: nn.Module, config: Config, layers: Sequence[int] | None = None) -> nn.Module:
    """A copy of the model, in the precision and with the trainable weights that the settings name."""
    student: Any = copy.deepcopy(vanilla)
    _recompute(student, False)
    if config.gradient_checkpointing:
        _recompute(student, True)
    if config.parameters == "lora":
        student = _with_adapter(student, config)
    else:
        student = _in_bf16(student) if config.precision == "bf16-pure" else student.float()
        wanted = _SUBSETS.get(config.parameters)
        body = None if wanted is None and layers is None else anatomy(student)
        for name, parameter in student.named_parameters():
            parameter.requires_grad_(body is None or _is_trained(body, name, wanted, layers))
    return student


def make_reference(vanilla: nn.Module, config: Config) -> nn.Module:
    """The vanilla model as the copy in training computes before its first step: a copy in that one's precision.

    A bf16 model's own logits are rounded, so that losses would start away from where both say the same, and a retain
    term would train towards the rounding. The model itself where its weights have that dtype already, and for an
    adapter, below which the weights keep theirs.
    """
    pure = config.precision == "bf16-pure"
    wanted = torch.bfloat16 if pure else torch.float32
    kept = config.parameters == "lora" and not pure
    if kept or all(p.dtype == wanted for p in vanilla.parameters() if p.is_floating_point()):
        return vanilla
    copied = copy.deepcopy(vanilla)
    return _in_bf16(copied) if pure else copied.float()


def _is_trained(body: Anatomy, name: str, wanted: set[str] | None, layers: Sequence[int] | None) -> bool:
    component, layer = component_of(body, name)
    return (wanted is None or component in wanted) and (layers is None or layer in layers)


def finish(student: nn.Module, vanilla: nn.Module, name: str) -> nn.Module:
    """The trained copy as a plain model in eval mode, in the original's dtype; an adapter is merged.

    Raises `KrsError` when no weight moved, or none as far as that dtype tells, and when one is not finite.
    """
    if hasattr(student, "merge_and_unload"):
        student = student.merge_and_unload()  # type: ignore[operator]
    _recompute(student, False)
    before = dict(vanilla.named_parameters())
    if all(torch.equal(before[n].to(p.device).float(), p.float()) for n, p in student.named_parameters()):
        raise KrsError(f"{name}: no parameter moved in training: raise learning_rate or steps")
    for n, parameter in student.named_parameters():
        parameter.requires_grad_(before[n].requires_grad)
    first = next(vanilla.parameters())
    done = _as_it_was(student, vanilla).eval()
    if all(torch.equal(before[n].to(p.device), p) for n, p in done.named_parameters()):
        raise KrsError(
            f"{name}: no weight moved so far that {str(first.dtype)[6:]} tells it from the vanilla model's: {_WIDER}, "
            "or raise learning_rate or steps"
        )
    config: Any = done.config
    config.use_cache = getattr(vanilla.config, "use_cache", True)  # the trainer switches it off
    for n, value in broken(done):
        raise KrsError(
            f"{name}: {n!r} holds {value} after training: lower the learning rate, or take fewer steps"
            + (", or load the model in bf16 or fp32, for fp16 overflows" if first.dtype == torch.float16 else "")
        )
    return done


@torch.no_grad()
def survives_rounding(student: nn.Module, vanilla: nn.Module) -> float | None:
    """How much of the way that the weights were moved is left once they have the vanilla model's dtype; 1 is all.

    The rounded way's part along the way itself. Where that dtype is bf16 or fp16, a step that is small beside a weight
    is rounded away. `None` where nothing is rounded.
    """
    along = whole = 0.0
    for before, way in _ways(student, vanilla):
        left = (before.float() + way).to(before.dtype).float() - before.float()
        along, whole = along + float((left * way).sum()), whole + float(way.square().sum())
    return along / whole if whole else None


def _ways(student: nn.Module, vanilla: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
    """Each narrow weight of the vanilla model, and how far training has moved it, in fp32."""
    theirs = dict(vanilla.named_parameters())
    if hasattr(student, "merge_and_unload"):
        for module in student.modules():
            if isinstance(module, nn.Module) and hasattr(module, "get_delta_weight"):
                base: Any = module.get_base_layer()  # type: ignore[operator]
                if base.weight.dtype in _NARROW:
                    for adapter in module.active_adapters:  # type: ignore[union-attr]
                        yield base.weight, module.get_delta_weight(adapter).float()  # type: ignore[operator]
        return
    for name, parameter in student.named_parameters():
        before = theirs[name].to(parameter.device)
        if before.dtype in _NARROW:
            yield before, parameter.float() - before.float()


def warn_of_rounding(name: str, share: float | None, dtype: torch.dtype) -> None:
    """Say that the result is less than what was trained, where it is."""
    if share is not None and share < _ENOUGH:
        warnings.warn(
            f"{name}: rounded to {str(dtype)[6:]}, the weights keep {max(share, 0):.0%} of the way that they were "
            f"moved, so that the result is weaker than what the log shows: {_WIDER}",
            KrsWarning,
            stacklevel=3,
        )


def _in_bf16(model: nn.Module) -> Any:
    """The model with its weights in bf16, and its buffers as they are: see `_as_it_was`."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    return model


def _as_it_was(student: nn.Module, vanilla: nn.Module) -> nn.Module:
    """Every parameter in the original's dtype, and the original's buffers, whose dtype is not that of the weights.

    Frequencies of rotary embeddings are fp32 in a bf16 model: rounded, they would be another model's.
    """
    student.to(device=next(vanilla.parameters()).device)
    before = dict(vanilla.named_parameters())
    for name, parameter in student.named_parameters():
        parameter.data = parameter.data.to(before[name].dtype)
    buffers = dict(vanilla.named_buffers())
    for name, buffer in student.named_buffers():
        buffer.data = buffers[name].detach().clone()
    return student


def _recompute(model: Any, on: bool) -> None:
    """Switch gradient checkpointing, which transformers 5.23 calls activation checkpointing."""
    name = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    if on:
        getattr(model, f"{name}_checkpointing_enable")({"use_reentrant": False})
    elif getattr(model, f"is_{name}_checkpointing", False):
        getattr(model, f"{name}_checkpointing_disable")()


def _fits_bf16(model: nn.Module) -> bool:
    return all(torch.equal(p, p.to(torch.bfloat16).to(p.dtype)) for p in model.parameters())


def _with_adapter(model: nn.Module, config: Config) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    transposed = any(type(module).__name__ == "Conv1D" for module in model.modules())
    settings: dict[str, Any] = {"r": config.lora_rank, "lora_alpha": config.lora_alpha, "fan_in_fan_out": transposed}
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with torch.random.fork_rng(devices=[]), peft_by_its_old_name():
        torch.manual_seed(config.seed)
        adapted = get_peft_model(
            model,
            LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM", **settings),
        )
    return _in_bf16(adapted) if config.precision == "bf16-pure" else adapted
