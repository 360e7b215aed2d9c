"""Where the points are in each architecture: a registry that users can add to.

A family is found by the model's `config.model_type`. Paths are matched exactly, never by substring.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from krs.errors import KrsError


@dataclass(frozen=True)
class Family:
    """Where one architecture keeps what the points name.

    Attributes:
        name: what to call it in messages.
        model_types: the values of `config.model_type` that it covers.
        layers: path of the list of decoder layers.
        roles: for each role, the path (or paths) of the module inside a layer. The built-in points use
            `"mlp_out_proj"` (its input are the MLP coefficients, its weight the value vectors) and `"attn_out_proj"`
            (its output is the attention output). More roles may be added for more points.
        final_norm: path of the norm before the head.
        absent: for a role that the architecture does not have, the reason, as an error message tells it.

    Example
    -------
    >>> Family("mine", ("my_type",), layers="model.layers",
    ...        roles={"mlp_out_proj": "mlp.down_proj", "attn_out_proj": "self_attn.o_proj"},
    ...        final_norm="model.norm").layers
    'model.layers'
    """

    name: str
    model_types: tuple[str, ...]
    layers: str
    roles: Mapping[str, str | tuple[str, ...]]
    final_norm: str
    absent: Mapping[str, str] = field(default_factory=dict)

    @property
    def decoder(self) -> str:
        """Path of the module that owns the layers and is called once a forward."""
        return self.layers.rpartition(".")[0]

    def paths(self, role: str) -> tuple[str, ...]:
        """The paths of a role inside a layer; raises `KrsError` when the family has none."""
        if role in self.absent:
            raise KrsError(f"{self.name} models have no {role}: {self.absent[role]}")
        if role not in self.roles:
            raise KrsError(
                f"the family {self.name!r} does not say where {role!r} is: "
                "register it again with that role (krs.hooks.register_family(…, replace=True))"
            )
        path = self.roles[role]
        return (path,) if isinstance(path, str) else tuple(path)


_BY_TYPE: dict[str, Family] = {}


def register_family(family: Family, *, replace: bool = False) -> Family:
    """Teach krs an architecture, for this process.

    Check it with `krs.hooks.self_check(model)` afterwards: it tells whether the points fire, whether
    putting a value back onto itself changes nothing, and whether changing a value changes the logits.

    Raises `KrsError` when one of its model types is known already and `replace` is false.
    """
    for model_type in family.model_types:
        known = _BY_TYPE.get(model_type)
        if known is not None and known != family and not replace:
            raise KrsError(
                f"model type {model_type!r} is covered by the family {known.name!r} already: "
                "pass replace=True to take its place"
            )
    for model_type in family.model_types:
        _BY_TYPE[model_type] = family
    return family


def family_of(model_type: str | None) -> Family:
    """The family that covers a `config.model_type`; raises `KrsError` with the remedy when none does."""
    if model_type in _BY_TYPE:
        return _BY_TYPE[model_type]
    raise KrsError(
        f"unknown model family {model_type!r}: krs does not know where its MLP and attention projections "
        f"are. Describe it with krs.hooks.register_family(krs.hooks.Family(…)). Known: {', '.join(known_types())}"
    )


def known_types() -> list[str]:
    """All model types that a registered family covers, sorted."""
    return sorted(_BY_TYPE)


def _add(name: str, types: str, layers: str, mlp: str, attn: str, norm: str, **absent: str) -> None:
    roles = {"attn_out_proj": attn} | ({"mlp_out_proj": mlp} if mlp else {})
    register_family(Family(name, tuple(types.split()), layers, roles, norm, absent))


_LLAMA_LIKE = "llama mistral qwen2 qwen3 olmo gemma phi3 smollm3 granite"
_POST_NORM = "olmo2 olmo3 gemma2 gemma3_text glm4"
_NO_SINGLE_PROJECTION = (
    "each token goes through several experts, so the points mlp_coef and value_vectors do not exist. "
    "Leave the MLP points out: settings=['attn_out'] works"
)

_add("Llama", _LLAMA_LIKE, "model.layers", "mlp.down_proj", "self_attn.o_proj", "model.norm")
_add("StableLm", "stablelm", "model.layers", "mlp.down_proj", "self_attn.o_proj", "model.norm")
_add("Starcoder2", "starcoder2", "model.layers", "mlp.c_proj", "self_attn.o_proj", "model.norm")
_add("Cohere", "cohere", "model.layers", "mlp.down_proj", "self_attn.o_proj", "model.norm")
_add("post-norm", _POST_NORM, "model.layers", "mlp.down_proj", "self_attn.o_proj", "model.norm")
_add("Phi", "phi", "model.layers", "mlp.fc2", "self_attn.dense", "model.final_layernorm")
_add(
    "GPT-NeoX",
    "gpt_neox",
    "gpt_neox.layers",
    "mlp.dense_4h_to_h",
    "attention.dense",
    "gpt_neox.final_layer_norm",
)
_add("GPT-2", "gpt2", "transformer.h", "mlp.c_proj", "attn.c_proj", "transformer.ln_f")
_add("GPT-Neo", "gpt_neo", "transformer.h", "mlp.c_proj", "attn.attention.out_proj", "transformer.ln_f")
_add("GPT-J", "gptj", "transformer.h", "mlp.fc_out", "attn.out_proj", "transformer.ln_f")
_add("Falcon", "falcon", "transformer.h", "mlp.dense_4h_to_h", "self_attention.dense", "transformer.ln_f")
_add("BLOOM", "bloom", "transformer.h", "mlp.dense_4h_to_h", "self_attention.dense", "transformer.ln_f")
_add("OPT", "opt", "model.decoder.layers", "fc2", "self_attn.out_proj", "model.decoder.final_layer_norm")
_add("MPT", "mpt", "transformer.blocks", "ffn.down_proj", "attn.out_proj", "transformer.norm_f")
_add(
    "original OLMo (ai2-olmo)",
    "hf_olmo",
    "model.transformer.blocks",
    "ff_out",
    "attn_out",
    "model.transformer.ln_f",
)
_add(
    "mixture-of-experts",
    "mixtral olmoe qwen2_moe qwen3_moe",
    "model.layers",
    "",
    "self_attn.o_proj",
    "model.norm",
    mlp_out_proj=_NO_SINGLE_PROJECTION,
)
