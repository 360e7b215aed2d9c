"""The built-in families: where the points are in each architecture."""

from __future__ import annotations

from collections.abc import Mapping

from krs.hooks.family import Family, OneOf

_SEPARATE = "q_proj k_proj v_proj"
_LLAMA_LIKE = "llama mistral qwen2 qwen3 olmo gemma smollm3 granite"
_POST_NORM = "olmo2 olmo3 gemma2 gemma3_text"
_GATED, _DOWN, _O = "gate_proj up_proj", "mlp.down_proj", "self_attn.o_proj"
_LAYERS, _NORM = "model.layers", "model.norm"
_AS_LLAMA = (_LAYERS, _DOWN, _GATED, _O, _SEPARATE, _NORM)
_NO_SINGLE_PROJECTION = (
    "each token goes through several experts, so the points mlp_coef and value_vectors do not exist. "
    "Leave the MLP points out: settings=['attn_out'] works"
)
_NO_MLP = {"mlp_out_proj": _NO_SINGLE_PROJECTION, "mlp_in": _NO_SINGLE_PROJECTION}
_LATENT = (
    "its attention makes keys and values of a latent vector, the rotary part of the keys apart: make a point of a "
    "module, ActivationPoint(…, role='.self_attn.kv_b_proj', side='output'), or use attn_query"
)
_TWO_STEPS = "q_proj q_a_proj q_b_proj kv_a_proj_with_mqa kv_b_proj"
_MIXTURES = (
    ("mixture-of-experts", "mixtral olmoe qwen2_moe qwen3_moe", "mlp", "shared_expert", "gate shared_expert_gate"),
    ("gpt-oss", "gpt_oss", "mlp", "", "router"),
    ("PhiMoE", "phimoe", "mlp", "", "router"),
    ("Llama 4", "llama4_text", "feed_forward", "shared_expert", "router"),
    ("Granite MoE", "granitemoe", "block_sparse_moe", "", "router"),
)
"""Name, model types, and what `_mixture` takes, of those with experts in every layer."""
_DELTA, _SPLIT = "in_proj_qkvz in_proj_ba", "in_proj_qkv in_proj_z in_proj_b in_proj_a"


def _family(
    name: str,
    types: str,
    layers: str,
    mlp: str,
    mlp_in: str,
    attn: str,
    attn_in: str,
    norm: str,
    absent: Mapping[str, str] | None = None,
    more: Mapping[str, str | tuple[str, ...] | OneOf] | None = None,
    mixers: tuple[str, ...] = (),
) -> Family:
    """A family. The input projections are names beside the output projection, separated by blanks."""
    roles: dict[str, str | tuple[str, ...] | OneOf] = {"attn_out_proj": attn, "attn_in": _beside(attn, attn_in)}
    roles |= {"mlp_out_proj": mlp, "mlp_in": _beside(mlp, mlp_in)}
    return Family(name, tuple(types.split()), layers, roles | dict(more or {}), norm, absent or {}, mixers)


def _beside(path: str, names: str) -> tuple[str, ...]:
    block = path.rpartition(".")[0]
    return tuple(f"{block}.{name}" if block else name for name in names.split())


def _mixture(block: str, beside: str, router: str) -> dict[str, str | tuple[str, ...] | OneOf]:
    """Roles of a mixture of experts: its block, the names of its experts beside the routed ones, its routers."""
    names = ("experts", *beside.split())
    return {
        "mlp_block": block,
        "moe_block": OneOf((block, f"{block}.experts")),
        "moe_experts": f"{block}.experts",
        "moe_router": f"{block}.{router.split(maxsplit=1)[0]}",
        "experts": tuple(f"{block}.{name}" for name in names),
        "router": tuple(f"{block}.{name}" for name in router.split()),
    }


def _mixed(attn: str, *others: tuple[str, str]) -> dict[str, str | tuple[str, ...] | OneOf]:
    """Roles of layers of which some attend and others mix their tokens otherwise: for each, what `_family` takes."""
    kinds = ((attn, _SEPARATE), *others)
    return {
        "attn_out_proj": OneOf(*dict.fromkeys(path for path, _ in kinds)),
        "attn_in": OneOf(*(_beside(path, names) for path, names in kinds)),
    }


BUILT_IN: tuple[Family, ...] = (
    _family("Llama", _LLAMA_LIKE, *_AS_LLAMA),
    _family("Phi-3", "phi3", _LAYERS, _DOWN, "gate_up_proj", _O, "qkv_proj", _NORM),
    _family("StableLm", "stablelm", *_AS_LLAMA),
    _family("Starcoder2", "starcoder2", _LAYERS, "mlp.c_proj", "c_fc", _O, _SEPARATE, _NORM),
    _family("Cohere", "cohere cohere2", *_AS_LLAMA),
    _family(
        "post-norm",
        _POST_NORM,
        *_AS_LLAMA,
        more={"attn_added": "post_attention_layernorm", "mlp_added": "post_feedforward_layernorm"},
    ),
    _family(
        "GLM-4",
        "glm4",
        _LAYERS,
        _DOWN,
        "gate_up_proj",
        _O,
        _SEPARATE,
        _NORM,
        more={"attn_added": "post_self_attn_layernorm", "mlp_added": "post_mlp_layernorm"},
    ),
    _family("Phi", "phi", _LAYERS, "mlp.fc2", "fc1", "self_attn.dense", _SEPARATE, "model.final_layernorm"),
    _family(
        "GPT-NeoX",
        "gpt_neox",
        "gpt_neox.layers",
        "mlp.dense_4h_to_h",
        "dense_h_to_4h",
        "attention.dense",
        "query_key_value",
        "gpt_neox.final_layer_norm",
    ),
    _family("GPT-2", "gpt2", "transformer.h", "mlp.c_proj", "c_fc", "attn.c_proj", "c_attn", "transformer.ln_f"),
    _family(
        "GPT-Neo",
        "gpt_neo",
        "transformer.h",
        "mlp.c_proj",
        "c_fc",
        "attn.attention.out_proj",
        _SEPARATE,
        "transformer.ln_f",
    ),
    _family("GPT-J", "gptj", "transformer.h", "mlp.fc_out", "fc_in", "attn.out_proj", _SEPARATE, "transformer.ln_f"),
    *(
        _family(
            name,
            model_type,
            "transformer.h",
            "mlp.dense_4h_to_h",
            "dense_h_to_4h",
            "self_attention.dense",
            "query_key_value",
            "transformer.ln_f",
        )
        for name, model_type in (("Falcon", "falcon"), ("BLOOM", "bloom"))
    ),
    _family(
        "OPT",
        "opt",
        "model.decoder.layers",
        "fc2",
        "fc1",
        "self_attn.out_proj",
        _SEPARATE,
        "model.decoder.final_layer_norm",
    ),
    _family(
        "MPT", "mpt", "transformer.blocks", "ffn.down_proj", "up_proj", "attn.out_proj", "Wqkv", "transformer.norm_f"
    ),
    _family(
        "original OLMo (ai2-olmo)",
        "hf_olmo",
        "model.transformer.blocks",
        "ff_out",
        "ff_proj",
        "attn_out",
        "att_proj",
        "model.transformer.ln_f",
    ),
    *(
        _family(
            name,
            types,
            _LAYERS,
            f"{block}.down_proj",
            _GATED,
            _O,
            _SEPARATE,
            _NORM,
            _NO_MLP,
            _mixture(block, shared, routers),
        )
        for name, types, block, shared, routers in _MIXTURES
    ),
    _family(
        "DeepSeek",
        "deepseek_v2 deepseek_v3",
        _LAYERS,
        _DOWN,
        _GATED,
        _O,
        _TWO_STEPS,
        _NORM,
        _NO_MLP | {"attn_key": _LATENT, "attn_value": _LATENT},
        _mixture("mlp", "shared_experts", "gate"),
    ),
    _family(
        "Qwen3-Next",
        "qwen3_next qwen3_5_text qwen3_5_moe_text",
        *_AS_LLAMA,
        _NO_MLP,
        _mixture("mlp", "shared_expert", "gate shared_expert_gate")
        | _mixed(_O, ("linear_attn.out_proj", _DELTA), ("linear_attn.out_proj", _SPLIT)),
        mixers=("linear_attn",),
    ),
    _family(
        "OLMo Hybrid",
        "olmo_hybrid",
        *_AS_LLAMA,
        more=_mixed(_O, ("linear_attn.o_proj", "q_proj k_proj v_proj a_proj b_proj g_proj"))
        | {  # layers that attend are post-norm; in the others the norm of the first name stands before the MLP
            "attn_added": OneOf("linear_attn.o_proj", "post_attention_layernorm"),
            "mlp_added": OneOf("post_feedforward_layernorm", _DOWN),
        },
        mixers=("linear_attn",),
    ),
    _family(
        "LFM2",
        "lfm2",
        _LAYERS,
        "feed_forward.w2",
        "w1 w3",
        "self_attn.out_proj",
        _SEPARATE,
        "model.embedding_norm",
        more=_mixed("self_attn.out_proj", ("conv.out_proj", "in_proj")),
        mixers=("conv",),
    ),
)
