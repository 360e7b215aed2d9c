"""Tiny random models of every family, for unit tests only."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

VOCAB = 61
EOS = 1

_BASE = {"vocab_size": VOCAB, "bos_token_id": 0, "eos_token_id": EOS, "pad_token_id": EOS}
_LLAMA = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
}
_GPT = {"n_embd": 16, "n_layer": 4, "n_head": 2, "n_positions": 64}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", _LLAMA | {"tie_word_embeddings": True}),
    "llama-bias": ("llama", _LLAMA | {"mlp_bias": True, "attention_bias": True}),
    "mistral": ("mistral", _LLAMA | {"sliding_window": 8}),
    "qwen2": ("qwen2", _LLAMA),
    "qwen3": ("qwen3", _LLAMA | {"head_dim": 8}),
    "olmo": ("olmo", _LLAMA),
    "gemma": ("gemma", _LLAMA | {"head_dim": 8}),
    "phi3": ("phi3", _LLAMA),
    "smollm3": ("smollm3", _LLAMA),
    "granite": ("granite", _LLAMA | {"residual_multiplier": 0.5, "logits_scaling": 2.0}),
    "stablelm": ("stablelm", _LLAMA),
    "stablelm-parallel": ("stablelm", _LLAMA | {"use_parallel_residual": True}),
    "starcoder2": ("starcoder2", _LLAMA),
    "cohere": ("cohere", _LLAMA),
    "cohere2": ("cohere2", _LLAMA | {"sliding_window": 8, "head_dim": 8}),
    "olmo2": ("olmo2", _LLAMA),
    "olmo3": ("olmo3", _LLAMA | {"sliding_window": 8}),
    "gemma2": ("gemma2", _LLAMA | {"head_dim": 8, "sliding_window": 8}),
    "gemma3": ("gemma3_text", _LLAMA | {"head_dim": 8, "sliding_window": 8}),
    "glm4": ("glm4", _LLAMA | {"head_dim": 8}),
    "phi": ("phi", _LLAMA),
    "gpt_neox": ("gpt_neox", _LLAMA),
    "gpt_neox-sequential": ("gpt_neox", _LLAMA | {"use_parallel_residual": False}),
    "gpt2": ("gpt2", _GPT),
    "gpt_neo": (
        "gpt_neo",
        {
            "hidden_size": 16,
            "num_layers": 4,
            "num_heads": 2,
            "intermediate_size": 24,
            "attention_types": [[["global", "local"], 2]],
            "window_size": 8,
            "max_position_embeddings": 64,
        },
    ),
    "gptj": ("gptj", _GPT | {"rotary_dim": 4}),
    "falcon": ("falcon", {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2}),
    "falcon-sequential-alibi": (
        "falcon",
        {
            "hidden_size": 16,
            "num_hidden_layers": 4,
            "num_attention_heads": 2,
            "parallel_attn": False,
            "alibi": True,
            "bias": True,
        },
    ),
    "bloom": ("bloom", {"hidden_size": 16, "n_layer": 4, "n_head": 2}),
    "opt": (
        "opt",
        {
            "hidden_size": 16,
            "ffn_dim": 24,
            "num_hidden_layers": 4,
            "num_attention_heads": 2,
            "max_position_embeddings": 64,
            "word_embed_proj_dim": 16,
        },
    ),
    "mpt": ("mpt", {"d_model": 16, "n_layers": 4, "n_heads": 2, "max_seq_len": 64, "expansion_ratio": 2}),
}
"""Every dense family that krs claims: name, model type, small configuration."""

MOE = ("mixtral", _LLAMA | {"num_local_experts": 2, "num_experts_per_tok": 1})

_TWO = {"num_local_experts": 2, "num_experts_per_tok": 1}
_LATENT = {
    "num_key_value_heads": 2,
    "moe_intermediate_size": 12,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "first_k_dense_replace": 2,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
    "topk_group": 1,
    "n_group": 1,
}

EXPERTS: dict[str, tuple[str, dict[str, Any]]] = {
    "moe": MOE,
    "olmoe": ("olmoe", _LLAMA | {"num_experts": 2, "num_experts_per_tok": 1}),
    "gpt_oss": (
        "gpt_oss",
        _LLAMA
        | _TWO
        | {"head_dim": 8, "sliding_window": 8, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
    ),
    "deepseek_v2": ("deepseek_v2", _LLAMA | _LATENT | {"q_lora_rank": None, "topk_method": "greedy"}),
    "deepseek_v3": ("deepseek_v3", _LLAMA | _LATENT | {"q_lora_rank": 8}),
    "llama4": (
        "llama4_text",
        _LLAMA | _TWO | {"intermediate_size_mlp": 24, "head_dim": 8, "interleave_moe_layer_step": 2},
    ),
    "phimoe": ("phimoe", _LLAMA | _TWO),
    "granitemoe": ("granitemoe", _LLAMA | _TWO | {"residual_multiplier": 0.5}),
}
"""Families with mixtures of experts."""

_DELTA = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
_EVERY_OTHER = ["linear_attention", "full_attention"] * 2
_SPARSE = {
    "num_experts": 2,
    "num_experts_per_tok": 1,
    "moe_intermediate_size": 12,
    "shared_expert_intermediate_size": 12,
}

HYBRIDS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3_next": (
        "qwen3_next",
        _LLAMA
        | _DELTA
        | _SPARSE
        | {"head_dim": 8, "layer_types": _EVERY_OTHER, "mlp_only_layers": [0, 1], "linear_num_value_heads": 4},
    ),
    "qwen3_5": ("qwen3_5_text", _LLAMA | _DELTA | {"head_dim": 8, "layer_types": _EVERY_OTHER}),
    "qwen3_5_moe": ("qwen3_5_moe_text", _LLAMA | _DELTA | _SPARSE | {"head_dim": 8, "layer_types": _EVERY_OTHER}),
    "olmo_hybrid": ("olmo_hybrid", _LLAMA | _DELTA | {"layer_types": _EVERY_OTHER}),
    "lfm2": ("lfm2", _LLAMA | {"block_auto_adjust_ff_dim": False, "layer_types": ["conv", "full_attention"] * 2}),
}
"""Families in which attention and other token mixers take turns: layers 1 and 3 attend, 0 and 2 do not."""


def build(name: str, seed: int = 0, **overrides: Any) -> nn.Module:
    """A random model of the family, in eval mode, with weights large enough for its parts to matter."""
    model_type, options = (FAMILIES | EXPERTS | HYBRIDS)[name]
    config = AutoConfig.for_model(model_type, **(_BASE | options | overrides))
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_((0.2 * noise).to(parameter.dtype))
    return model


def perturbed(model: nn.Module, seed: int = 1, scale: float = 0.05) -> nn.Module:
    """A copy whose every parameter has moved a little: the stand-in for an unlearned model."""
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in other.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_((scale * noise).to(parameter.dtype))
    return other


def pair(name: str, **overrides: Any) -> tuple[nn.Module, nn.Module]:
    """A vanilla model and an "unlearned" one of the same family."""
    vanilla = build(name, **overrides)
    return vanilla, perturbed(vanilla)


def exact_pair(name: str, **overrides: Any) -> tuple[nn.Module, nn.Module]:
    """The same in float64, in which ways to one number agree to `tests.noise.EXACT`."""
    vanilla, unlearned = pair(name, **overrides)
    return vanilla.double(), unlearned.double()


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of every parameter and buffer, to compare bit for bit with `same_state`."""
    return {key: value.clone() for key, value in model.state_dict().items()}


def same_state(model: nn.Module, before: dict[str, torch.Tensor]) -> bool:
    """Whether every parameter and buffer has exactly the bytes that it had."""
    now = model.state_dict()
    return now.keys() == before.keys() and all(torch.equal(now[k], before[k]) for k in before)
