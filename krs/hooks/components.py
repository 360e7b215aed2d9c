"""Which component of the model a parameter belongs to: keys, value vectors, attention, norms …"""

from __future__ import annotations

from torch import nn

from krs.hooks.anatomy import Anatomy

COMPONENTS = (
    "keys", "value_vectors", "attention_in", "attention_out", "norms", "biases", "embedding", "unembedding", "other"
)  # fmt: skip
"""What weights are counted as: the MLP's input projections; its output projection; queries, keys and values; the
attention's output projection; norms; biases; token and position embeddings; the head; whatever fits nowhere."""


def component_of(body: Anatomy, name: str) -> tuple[str, int]:
    """The component that a parameter belongs to, and its layer (-1 outside the layers). Matched by path."""
    prefix = f"{body.family.layers}."
    if not name.startswith(prefix):
        return _outside(body, name), -1
    number, _, inside = name.removeprefix(prefix).partition(".")
    module, _, kind = inside.rpartition(".")
    (attention,) = body.family.paths("attn_out_proj")
    mlp = body.family.roles.get("mlp_out_proj")
    questions = {
        "biases": kind == "bias",
        "value_vectors": module == mlp,
        "attention_out": module == attention,
        "norms": _is_norm(body.layers[int(number)].get_submodule(module)),
        "attention_in": inside.startswith(f"{attention.rpartition('.')[0]}."),
        "keys": mlp is not None,
        "other": True,
    }
    return next(component for component, answer in questions.items() if answer), int(number)


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower()


def _outside(body: Anatomy, name: str) -> str:
    module = body.model.get_submodule(name.rpartition(".")[0])
    if module is body.model.get_output_embeddings():  # type: ignore[operator]
        return "unembedding"
    if isinstance(module, nn.Embedding):
        return "embedding"
    return "norms" if _is_norm(module) else "other"
