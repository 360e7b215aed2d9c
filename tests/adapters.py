"""Adapters of peft, the real ones, on tiny models: every kind that its installed version can build here."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

_LLAMA = ["down_proj", "o_proj", "q_proj"]
_GPT2 = ["c_proj", "c_attn"]

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("Lora", {"r": 2}),
    "rslora": ("Lora", {"r": 4, "use_rslora": True}),
    "dora": ("Lora", {"r": 2, "use_dora": True}),
    "lora-bias": ("Lora", {"r": 2, "lora_bias": True}),
    "lora-only-bias": ("Lora", {"r": 2, "bias": "lora_only"}),
    "ia3": ("IA3", {"feedforward_modules": "mlp"}),
    "ia3-output": ("IA3", {"feedforward_modules": []}),
    "adalora": ("AdaLora", {"init_r": 2, "total_step": 10}),
    "beft": ("Beft", {}),
    "boft": ("BOFT", {"boft_block_size": 4}),
    "c3a": ("C3A", {"block_size": 8}),
    "deft": ("Deft", {}),
    "delora": ("Delora", {"r": 2}),
    "fourierft": ("FourierFT", {"n_frequency": 20}),
    "glora": ("Glora", {}),
    "gralora": ("Gralora", {"r": 4}),
    "hira": ("Hira", {"r": 2}),
    "hra": ("HRA", {"r": 2}),
    "loha": ("LoHa", {"r": 2}),
    "lokr": ("LoKr", {"r": 2}),
    "miss": ("Miss", {"r": 4}),
    "oft": ("OFT", {"oft_block_size": 4, "r": 0}),
    "osf": ("OSF", {}),
    "randlora": ("RandLora", {"r": 2}),
    "road": ("Road", {"group_size": 8}),
    "shira": ("Shira", {"r": 2}),
    "tinylora": ("TinyLora", {}),
    "unilora": ("UniLora", {}),
    "vblora": ("VBLoRA", {"num_vectors": 8, "vector_length": 4}),
    "vera": ("Vera", {"r": 4}),
    "waveft": ("WaveFT", {"n_frequency": 20}),
}
"""By name: the config's class (without `Config`), and its settings."""

ON_CONV1D = ("lora", "rslora", "dora", "lora-bias", "ia3", "ia3-output", "adalora", "fourierft", "vera", "vblora")
"""The kinds that peft also puts around GPT-2's transposed projections."""


def adapted(model: nn.Module, kind: str, seed: int = 3, **settings: Any) -> nn.Module:
    """A PEFT model around a copy of `model`, in eval mode, its adapter far from where training begins."""
    import peft

    name, given = KINDS[kind]
    config_class: Callable[..., Any] = getattr(peft, f"{name}Config")
    gpt2 = model.config.model_type == "gpt2"
    settings = {"target_modules": _GPT2 if gpt2 else _LLAMA, "task_type": "CAUSAL_LM"} | given | settings
    if settings.get("feedforward_modules") == "mlp":
        settings["feedforward_modules"] = ["c_proj"] if gpt2 else ["down_proj"]
    if gpt2 and "fan_in_fan_out" in config_class.__dataclass_fields__:
        settings["fan_in_fan_out"] = True
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = peft.get_peft_model(copy.deepcopy(model), config_class(**settings)).eval()
    return disturbed(made, seed)


def disturbed(model: nn.Module, seed: int = 3) -> nn.Module:
    """Moves whatever is trainable away from where training begins, in place."""
    drawn = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=drawn, dtype=torch.float64)
                parameter.add_((0.1 * noise).to(parameter))
    return model


def merged_by_peft(model: nn.Module) -> nn.Module:
    """What peft itself makes of a copy."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return copy.deepcopy(model).merge_and_unload().eval()
