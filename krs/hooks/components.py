"""Which component of the model a parameter belongs to: keys, value vectors, attention, norms …"""

from __future__ import annotations

from torch import nn

from krs.hooks.anatomy import Anatomy
from krs.hooks.family import Family
from krs.hooks.unwrap import core, plain_name

COMPONENTS = (
    "keys", "value_vectors", "experts", "router", "attention_in", "attention_out", "norms", "biases", "embedding",
    "unembedding", "other",
)  # fmt: skip
"""What weights are counted as: the MLP's input projections; its output projection; in mixtures of experts all
projections of all experts, the shared one too, and what chooses among them; queries, keys and values, and all else that
a token mixer other than attention computes with; the attention's (or mixer's) output projection; norms; biases; token
and position embeddings; the head; whatever fits nowhere."""

_ROLES = {
    "value_vectors": "mlp_out_proj",
    "attention_out": "attn_out_proj",
    "keys": "mlp_in",
    "attention_in": "attn_in",
    "experts": "experts",
    "router": "router",
}


def component_of(body: Anatomy, name: str) -> tuple[str, int]:
    """The component that a parameter belongs to, and its layer (-1 outside the layers). Matched by path.

    The family's roles say where a component is. For a family that does not name its input projections, they are what
    lies beside the output projection, in the same block; a family whose blocks are no modules of their own has to name
    them. An adapter's own parameters count as what they are around.
    """
    prefix = f"{body.family.layers}."
    name = plain_name(name)
    if not name.startswith(prefix):
        return _outside(body, name), -1
    number, _, inside = name.removeprefix(prefix).partition(".")
    module, _, kind = inside.rpartition(".")
    if kind == "bias":
        return "biases", int(number)
    if _is_norm(body.layers[int(number)], module):
        return "norms", int(number)
    found = (component for component, role in _ROLES.items() if any(_below(inside, p) for p in _paths(body, role)))
    return next(found, "other"), int(number)


def _paths(body: Anatomy, role: str) -> tuple[str, ...]:
    family: Family = body.family
    if role in family.roles:
        return (*family.paths(role), *(family.mixers if role == "attn_in" else ()))
    output = {"mlp_in": "mlp_out_proj", "attn_in": "attn_out_proj"}.get(role, "")
    if output not in family.roles:
        return ()
    block = family.paths(output)[0].rpartition(".")[0]
    return (block,) if block else ()


def _below(inside: str, path: str) -> bool:
    return inside.startswith(f"{path}.")


def _is_norm(root: nn.Module, path: str) -> bool:
    try:
        return "norm" in type(core(root.get_submodule(path))).__name__.lower()
    except AttributeError:  # an adapter's parameter that is held by no module of the model
        return False


def _outside(body: Anatomy, name: str) -> str:
    path = name.rpartition(".")[0]
    try:
        module = body.model.get_submodule(path)
    except AttributeError:
        return "other"
    if module is body.model.get_output_embeddings():  # type: ignore[operator]
        return "unembedding"
    if isinstance(core(module), nn.Embedding):
        return "embedding"
    return "norms" if _is_norm(body.model, path) else "other"
