"""OLMo checkpoints in the layout of the package `ai2-olmo`, as the models of the paper were first published.

`transformers` knows the architecture by other names: query, key and value stand in one matrix there, and so do the two
that the MLP begins with. The tables below say what is what; weights are taken as they are, to the bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from krs.errors import KrsError

TYPES = ("olmo", "hf_olmo")

_LAYER = {
    "att_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attn_out": ("self_attn.o_proj",),
    "ff_proj": ("mlp.up_proj", "mlp.gate_proj"),
    "ff_out": ("mlp.down_proj",),
}
"""In a block: each matrix there, and the ones here that it is made of, one below the other."""

_OUTSIDE = {"wte": "model.embed_tokens", "ff_out": "lm_head"}

_PLAIN = {
    "activation_type": ("swiglu",),
    "alibi": (False,),
    "attention_layer_norm": (False,),
    "block_type": ("sequential",),
    "include_bias": (False,),
    "layer_norm_type": ("default", "low_precision"),
    "layer_norm_with_affine": (False,),
    "norm_after": (False,),
    "rope": (True,),
    "scale_logits": (False,),
    "embedding_layer_norm": (False,),
    "layer_norm_eps": (1e-5,),
}
"""Settings of which `transformers`' OLMo has one value only; the first is the one that a file need not say."""

_NOT_SAID = {"layer_norm_with_affine": True, "alibi": False, "rope": False, "include_bias": True}
"""What `ai2-olmo` takes where a file says nothing, where that is another value."""

_WRONG_EOS, _EOS, _OLMO_VOCABULARY = 0, 50279, 50280
"""The first checkpoints name the wrong token; `transformers`' own conversion script puts it right in the same way."""


def is_original(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is of this layout."""
    return config.get("model_type") in TYPES and "d_model" in config and "hidden_size" not in config


def to_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """What `transformers.OlmoConfig` takes, from a config.json of this layout.

    Raises `KrsError` for settings that `transformers`' OLMo does not have.
    """
    for name, allowed in _PLAIN.items():
        said = config.get(name, _NOT_SAID.get(name, allowed[0]))
        if said not in allowed:
            raise KrsError(
                f"this ai2-olmo checkpoint has {name}={said!r}, which transformers' OLMo cannot compute (it has "
                f"{allowed[0]!r}): use a checkpoint that was converted to transformers (its name ends in -hf)"
            )
    heads = int(config["n_heads"])
    shared = config.get("n_kv_heads") or (1 if config.get("multi_query_attention") else heads)
    inside = config.get("mlp_hidden_size") or config.get("mlp_ratio", 4) * config["d_model"]
    eos = config.get("eos_token_id")
    if eos == _WRONG_EOS and config["vocab_size"] == _OLMO_VOCABULARY:
        eos = _EOS
    return {
        "vocab_size": config.get("embedding_size") or config["vocab_size"],
        "hidden_size": config["d_model"],
        "intermediate_size": int(inside) // 2,  # it counts gate and up together
        "num_hidden_layers": config["n_layers"],
        "num_attention_heads": heads,
        "num_key_value_heads": int(shared),
        "max_position_embeddings": config["max_sequence_length"],
        "rope_parameters": {"rope_type": "default", "rope_theta": float(config.get("rope_theta") or 10000.0)},
        "clip_qkv": config.get("clip_qkv"),
        "tie_word_embeddings": bool(config.get("weight_tying", True)),
        "pad_token_id": config.get("pad_token_id"),
        "bos_token_id": None,
        "eos_token_id": eos,
        "dtype": config.get("torch_dtype") or config.get("dtype"),
    }


@dataclass(frozen=True)
class _Rule:
    """One matrix there, and the matrices here that stand in it, with their rows."""

    theirs: str
    ours: tuple[str, ...]
    rows: tuple[int, ...]


def _rules(config: Any) -> Iterator[_Rule]:
    d, n = config.hidden_size, config.intermediate_size
    shared = d // config.num_attention_heads * config.num_key_value_heads
    rows = {"att_proj": (d, shared, shared), "attn_out": (d,), "ff_proj": (n, n), "ff_out": (d,)}
    for layer in range(config.num_hidden_layers):
        for theirs, ours in _LAYER.items():
            names = tuple(f"model.layers.{layer}.{name}.weight" for name in ours)
            yield _Rule(f"transformer.blocks.{layer}.{theirs}.weight", names, rows[theirs])
    for theirs, name in _OUTSIDE.items():
        if name != "lm_head" or not config.tie_word_embeddings:
            yield _Rule(f"transformer.{theirs}.weight", (f"{name}.weight",), (config.vocab_size,))


def to_transformers(weights: Mapping[str, Tensor], config: Any) -> dict[str, Tensor]:
    """The weights of an `OlmoForCausalLM` with this `OlmoConfig`, as views of a checkpoint's of this layout.

    Raises `KrsError` for a checkpoint with other weights than the table has, and with other shapes.
    """
    given = {name.removeprefix("model."): value for name, value in weights.items()}
    rules = list(_rules(config))
    theirs = {rule.theirs for rule in rules}
    if config.tie_word_embeddings:  # some were saved with the head although it is the embedding
        given.pop("transformer.ff_out.weight", None)
    if given.keys() != theirs:
        odd = min(given.keys() ^ theirs)
        lacks = "lacks" if odd in theirs else "has, beside what OLMo is made of,"
        raise KrsError(f"this ai2-olmo checkpoint {lacks} the weight {odd!r}: it is not whole, or of another model")
    made: dict[str, Tensor] = {}
    for rule in rules:
        whole = given[rule.theirs]
        if len(whole) != sum(rule.rows):
            raise KrsError(
                f"{rule.theirs!r} has {len(whole)} rows, and its config.json says {sum(rule.rows)}: they do not "
                "belong together"
            )
        made |= zip(rule.ours, whole.split(rule.rows), strict=True)
    return made


def from_transformers(weights: Mapping[str, Tensor], config: Any) -> dict[str, Tensor]:
    """The other way: an `OlmoForCausalLM`'s weights in this layout, as `ai2-olmo` would read them."""
    return {f"model.{rule.theirs}": torch.cat([weights[name] for name in rule.ours]) for rule in _rules(config)}
