"""Where the points are in each architecture: a registry that users can add to.

A family is found by the model's `config.model_type`. Paths are matched exactly, never by substring.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from krs.errors import KrsError
from krs.registry import Registry, caller

Params = ParamSpec("Params")
Result = TypeVar("Result")


@dataclass(frozen=True)
class OneOf:
    """Where a role is in architectures whose layers differ: a layer has the first of these that it has all modules of.

    >>> OneOf("mlp.down_proj", "mlp.shared_expert.down_proj").alternatives
    (('mlp.down_proj',), ('mlp.shared_expert.down_proj',))

    Args:
        alternatives: a path each, or several.
    """

    alternatives: tuple[tuple[str, ...], ...]

    def __init__(self, *alternatives: str | tuple[str, ...]) -> None:
        object.__setattr__(self, "alternatives", tuple((a,) if isinstance(a, str) else a for a in alternatives))


@dataclass(frozen=True)
class Family:
    """Where one architecture keeps what the points name.

    Attributes:
        name: what to call it in messages.
        model_types: the values of `config.model_type` that it covers.
        layers: path of the list of decoder layers.
        roles: for each role, the path (or paths) of the module inside a layer. The built-in points use
            `"mlp_out_proj"` (its input are the MLP coefficients, its weight the value vectors) and `"attn_out_proj"`
            (its output is the attention output). `"mlp_in"` (the keys: gate and up projection, or the one there is) and
            `"attn_in"` (queries, keys and values, or the one projection that they share), in mixtures of experts
            `"experts"` and `"router"`, say which component a weight counts as. More roles may be added for more points.
            Where layers differ (dense ones, then mixtures of experts), `OneOf` lists alternatives.
        final_norm: path of the norm before the head.
        absent: for a role that the architecture does not have, or not in every layer, the reason, as an error message
            tells it.
        mixers: paths, inside a layer, of what mixes its tokens where that is no softmax attention: linear attention,
            state spaces, convolutions. A layer that has one has no attention heads.

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
    roles: Mapping[str, str | tuple[str, ...] | OneOf]
    final_norm: str
    absent: Mapping[str, str] = field(default_factory=dict)
    mixers: tuple[str, ...] = ()

    @property
    def decoder(self) -> str:
        """Path of the module that owns the layers and is called once a forward."""
        return self.layers.rpartition(".")[0]

    def paths(self, role: str) -> tuple[str, ...]:
        """The paths of a role inside a layer, of all alternatives; raises `KrsError` when the family has none."""
        return tuple(path for paths in self.alternatives(role) for path in paths)

    def alternatives(self, role: str) -> tuple[tuple[str, ...], ...]:
        """The paths of a role inside a layer, for each kind of layer; raises `KrsError` when the family has none."""
        if role not in self.roles and role in self.absent:
            raise KrsError(f"{self.name} models have no {role}: {self.absent[role]}")
        if role not in self.roles and role.startswith("moe_"):
            raise KrsError(
                f"{self.name} models are no mixtures of experts: leave the points of experts and routers out"
            )
        if role not in self.roles:
            raise KrsError(
                f"the family {self.name!r} does not say where {role!r} is: "
                "register it again with that role (krs.hooks.register_family(…, replace=True))"
            )
        path = self.roles[role]
        if isinstance(path, OneOf):
            return path.alternatives
        return ((path,) if isinstance(path, str) else tuple(path),)


def _take(name: str, family: Any) -> None:
    """What an entry point of the group `krs.families` names; one that is no module is a family."""
    if not isinstance(family, Family):
        raise KrsError(f"the entry point {name!r} (krs.families) names {type(family).__name__}, which is no family")
    _register(family, f"entry point {name}")


BY_TYPE: Registry[Family] = Registry(
    "model type", "krs.families", take=_take, taken="pass replace=True to take its place"
)
"""Families by `config.model_type`."""


def register_family(family: Family, *, replace: bool = False) -> Family:
    """Teach krs an architecture, for this process.

    Check it with `krs.hooks.self_check(model)` afterwards: it tells whether the points fire, whether
    putting a value back onto itself changes nothing, and whether changing a value changes the logits.

    A notebook's cell that registers one may be run again, changed. Raises `KrsError` when one of its model types is
    known already and `replace` is false.
    """
    return _register(family, caller(), replace)


def _register(family: Family, module: str, replace: bool = False) -> Family:
    for registry in (BY_TYPE.copy(), BY_TYPE):  # none of its types is registered unless all can be
        for model_type in family.model_types:
            registry.add(model_type, family, module, replace=replace)
    return family


_OF_CALL: ContextVar[Family | None] = ContextVar("krs_family", default=None)


@contextmanager
def family_for(family: Family | str | None) -> Iterator[None]:
    """Inside, every model is of this family, by itself or as a model type that it covers; `None` changes nothing."""
    if family is None:
        yield
        return
    token = _OF_CALL.set(family if isinstance(family, Family) else family_of(family))
    try:
        yield
    finally:
        _OF_CALL.reset(token)


def with_family(function: Callable[Params, Result]) -> Callable[Params, Result]:
    """A function whose argument `family` says of which family the models of a call are."""

    @wraps(function)
    def call(*args: Params.args, **kwargs: Params.kwargs) -> Result:
        with family_for(kwargs.get("family")):  # type: ignore[arg-type]
            return function(*args, **kwargs)

    return call


def family_of(model_type: str | None) -> Family:
    """The family that covers a `config.model_type`; raises `KrsError` with the remedy when none does.

    Inside `family_for` it is that family, whatever the type.
    """
    if (given := _OF_CALL.get()) is not None:
        return given
    if model_type is not None and model_type in BY_TYPE:
        return BY_TYPE[model_type]
    raise KrsError(
        f"unknown model family {model_type!r}: krs does not know where its MLP and attention projections "
        f"are. Where it is laid out as a known type, name that one (family='llama'); else describe it with "
        f"krs.hooks.register_family(krs.hooks.Family(…)). Known: {', '.join(known_types())}"
    )


def known_types() -> list[str]:
    """All model types that a registered family covers, sorted."""
    return BY_TYPE.names()


_SEPARATE = "q_proj k_proj v_proj"


def _add(
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
) -> None:
    """Register a family. The input projections are names beside the output projection, separated by blanks."""
    roles: dict[str, str | tuple[str, ...] | OneOf] = {"attn_out_proj": attn, "attn_in": _beside(attn, attn_in)}
    roles |= {"mlp_out_proj": mlp, "mlp_in": _beside(mlp, mlp_in)}
    _register(
        Family(name, tuple(types.split()), layers, roles | dict(more or {}), norm, absent or {}, mixers), __name__
    )


def _beside(path: str, names: str) -> tuple[str, ...]:
    block = path.rpartition(".")[0]
    return tuple(f"{block}.{name}" if block else name for name in names.split())


_LLAMA_LIKE = "llama mistral qwen2 qwen3 olmo gemma smollm3 granite"
_POST_NORM = "olmo2 olmo3 gemma2 gemma3_text"
_GATED, _DOWN, _O = "gate_proj up_proj", "mlp.down_proj", "self_attn.o_proj"
_LAYERS, _NORM = "model.layers", "model.norm"
_NO_SINGLE_PROJECTION = (
    "each token goes through several experts, so the points mlp_coef and value_vectors do not exist. "
    "Leave the MLP points out: settings=['attn_out'] works"
)

_add("Llama", _LLAMA_LIKE, _LAYERS, _DOWN, _GATED, _O, _SEPARATE, _NORM)
_add("Phi-3", "phi3", _LAYERS, _DOWN, "gate_up_proj", _O, "qkv_proj", _NORM)
_add("StableLm", "stablelm", _LAYERS, _DOWN, _GATED, _O, _SEPARATE, _NORM)
_add("Starcoder2", "starcoder2", _LAYERS, "mlp.c_proj", "c_fc", _O, _SEPARATE, _NORM)
_add("Cohere", "cohere cohere2", _LAYERS, _DOWN, _GATED, _O, _SEPARATE, _NORM)
_add(
    "post-norm",
    _POST_NORM,
    _LAYERS,
    _DOWN,
    _GATED,
    _O,
    _SEPARATE,
    _NORM,
    more={"attn_added": "post_attention_layernorm", "mlp_added": "post_feedforward_layernorm"},
)
_add(
    "GLM-4",
    "glm4",
    _LAYERS,
    _DOWN,
    "gate_up_proj",
    _O,
    _SEPARATE,
    _NORM,
    more={"attn_added": "post_self_attn_layernorm", "mlp_added": "post_mlp_layernorm"},
)
_add("Phi", "phi", _LAYERS, "mlp.fc2", "fc1", "self_attn.dense", _SEPARATE, "model.final_layernorm")
_add(
    "GPT-NeoX",
    "gpt_neox",
    "gpt_neox.layers",
    "mlp.dense_4h_to_h",
    "dense_h_to_4h",
    "attention.dense",
    "query_key_value",
    "gpt_neox.final_layer_norm",
)
_add("GPT-2", "gpt2", "transformer.h", "mlp.c_proj", "c_fc", "attn.c_proj", "c_attn", "transformer.ln_f")
_add(
    "GPT-Neo",
    "gpt_neo",
    "transformer.h",
    "mlp.c_proj",
    "c_fc",
    "attn.attention.out_proj",
    _SEPARATE,
    "transformer.ln_f",
)
_add("GPT-J", "gptj", "transformer.h", "mlp.fc_out", "fc_in", "attn.out_proj", _SEPARATE, "transformer.ln_f")
for _name, _type in (("Falcon", "falcon"), ("BLOOM", "bloom")):
    _add(
        _name,
        _type,
        "transformer.h",
        "mlp.dense_4h_to_h",
        "dense_h_to_4h",
        "self_attention.dense",
        "query_key_value",
        "transformer.ln_f",
    )
_add(
    "OPT",
    "opt",
    "model.decoder.layers",
    "fc2",
    "fc1",
    "self_attn.out_proj",
    _SEPARATE,
    "model.decoder.final_layer_norm",
)
_add("MPT", "mpt", "transformer.blocks", "ffn.down_proj", "up_proj", "attn.out_proj", "Wqkv", "transformer.norm_f")
_add(
    "original OLMo (ai2-olmo)",
    "hf_olmo",
    "model.transformer.blocks",
    "ff_out",
    "ff_proj",
    "attn_out",
    "att_proj",
    "model.transformer.ln_f",
)
_NO_MLP = {"mlp_out_proj": _NO_SINGLE_PROJECTION, "mlp_in": _NO_SINGLE_PROJECTION}
_LATENT = (
    "its attention makes keys and values of a latent vector, the rotary part of the keys apart: make a point of a "
    "module, ActivationPoint(…, role='.self_attn.kv_b_proj', side='output'), or use attn_query"
)
_TWO_STEPS = "q_proj q_a_proj q_b_proj kv_a_proj_with_mqa kv_b_proj"


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


for _name, _types, _block, _shared, _routers in (
    ("mixture-of-experts", "mixtral olmoe qwen2_moe qwen3_moe", "mlp", "shared_expert", "gate shared_expert_gate"),
    ("gpt-oss", "gpt_oss", "mlp", "", "router"),
    ("PhiMoE", "phimoe", "mlp", "", "router"),
    ("Llama 4", "llama4_text", "feed_forward", "shared_expert", "router"),
    ("Granite MoE", "granitemoe", "block_sparse_moe", "", "router"),
):
    _more = _mixture(_block, _shared, _routers)
    _add(_name, _types, _LAYERS, f"{_block}.down_proj", _GATED, _O, _SEPARATE, _NORM, _NO_MLP, _more)
_add(
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
)


def _mixed(attn: str, *others: tuple[str, str]) -> dict[str, str | tuple[str, ...] | OneOf]:
    """Roles of layers of which some attend and others mix their tokens otherwise: for each, what `_add` takes."""
    kinds = ((attn, _SEPARATE), *others)
    return {
        "attn_out_proj": OneOf(*dict.fromkeys(path for path, _ in kinds)),
        "attn_in": OneOf(*(_beside(path, names) for path, names in kinds)),
    }


_DELTA, _SPLIT = "in_proj_qkvz in_proj_ba", "in_proj_qkv in_proj_z in_proj_b in_proj_a"
_add(
    "Qwen3-Next",
    "qwen3_next qwen3_5_text qwen3_5_moe_text",
    _LAYERS,
    _DOWN,
    _GATED,
    _O,
    _SEPARATE,
    _NORM,
    _NO_MLP,
    _mixture("mlp", "shared_expert", "gate shared_expert_gate")
    | _mixed(_O, ("linear_attn.out_proj", _DELTA), ("linear_attn.out_proj", _SPLIT)),
    mixers=("linear_attn",),
)
_add(
    "OLMo Hybrid",
    "olmo_hybrid",
    _LAYERS,
    _DOWN,
    _GATED,
    _O,
    _SEPARATE,
    _NORM,
    more=_mixed(_O, ("linear_attn.o_proj", "q_proj k_proj v_proj a_proj b_proj g_proj"))
    | {  # layers that attend are post-norm; in the others the norm of the first name stands before the MLP
        "attn_added": OneOf("linear_attn.o_proj", "post_attention_layernorm"),
        "mlp_added": OneOf("post_feedforward_layernorm", _DOWN),
    },
    mixers=("linear_attn",),
)
_add(
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
)

_OWN = [BY_TYPE[name] for name in BY_TYPE]


def layout(family: Family) -> dict[str, Any] | None:
    """Where a family that somebody else has described keeps what the points name; `None` for one of krs's own.

    >>> layout(family_of("llama")) is None
    True
    """
    if family in _OWN:
        return None
    roles = {role: family.alternatives(role) for role in family.roles}
    return {"layers": family.layers, "roles": roles, "final_norm": family.final_norm, "mixers": family.mixers}
