"""Which outputs of an attention's projections are queries, which keys and which values, fused projections included."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from krs.errors import KrsError

Projection: TypeAlias = Literal["query", "key", "value"]
PROJECTIONS: tuple[Projection, ...] = ("query", "key", "value")
Units: TypeAlias = tuple[int, ...]


@dataclass(frozen=True)
class HeadCounts:
    """The attention heads of a model: how many, how many for keys and values, and their size.

    >>> HeadCounts(9, 3, 64).query
    9
    """

    query: int
    key: int
    size: int

    @staticmethod
    def of(config: Any) -> HeadCounts:
        """As a model's config says."""
        query = int(config.num_attention_heads)
        size = getattr(config, "head_dim", None) or int(config.hidden_size) // query
        key = getattr(config, "num_key_value_heads", None)
        if config.model_type == "falcon":
            key = config.num_kv_heads if config.new_decoder_architecture or not config.multi_query else 1
        return HeadCounts(query, int(key or query), int(size))


def contiguous(part: Projection, heads: HeadCounts, config: Any) -> Units:
    """All queries, then all keys, then all values."""
    sizes = [heads.query * heads.size, heads.key * heads.size, heads.key * heads.size]
    start = sum(sizes[: PROJECTIONS.index(part)])
    return tuple(range(start, start + sizes[PROJECTIONS.index(part)]))


def head_by_head(part: Projection, heads: HeadCounts, config: Any) -> Units:
    """Query, key and value of the first head, then of the second: GPT-NeoX, BLOOM."""
    offset = PROJECTIONS.index(part) * heads.size
    return tuple(3 * h * heads.size + offset + i for h in range(heads.query) for i in range(heads.size))


def falcon(part: Projection, heads: HeadCounts, config: Any) -> Units:
    """Groups of queries, each with the key and the value that they share."""
    if not config.new_decoder_architecture and not config.multi_query:
        return head_by_head(part, heads, config)
    queries = heads.query // heads.key
    inside = {"query": range(queries), "key": [queries], "value": [queries + 1]}[part]
    return tuple(
        (group * (queries + 2) + head) * heads.size + i
        for group in range(heads.key)
        for head in inside
        for i in range(heads.size)
    )


def beside_gates(part: Projection, heads: HeadCounts, config: Any) -> Units:
    """Queries of the first head, then the gate of its output, then the second head's: Qwen3-Next."""
    return tuple(2 * h * heads.size + i for h in range(heads.query) for i in range(heads.size))


_Layout: TypeAlias = Callable[[Projection, HeadCounts, Any], Units]

_OWN = {"query": ("q_proj", "q_b_proj"), "key": ("k_proj",), "value": ("v_proj",)}
_WITH_GATES = ("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text")
_FUSED: dict[str, _Layout] = {
    "qkv_proj": contiguous,
    "c_attn": contiguous,
    "Wqkv": contiguous,
    "att_proj": contiguous,
    "query_key_value": head_by_head,
}


def find(part: Projection, has: Callable[[str], bool], config: Any) -> tuple[str, Units | None]:
    """Name of the projection inside the attention, and which of its outputs are meant; `None` for all.

    Args:
        part: queries, keys or values.
        has: whether the attention has a module of that name.
        config: the model's.

    Raises `KrsError` for attention whose projections krs does not know.
    """
    for name in _OWN[part]:
        if has(name):
            gated = part == "query" and config.model_type in _WITH_GATES
            return name, beside_gates(part, HeadCounts.of(config), config) if gated else None
    for name, layout in _FUSED.items():
        if has(name):
            chosen = falcon if config.model_type == "falcon" else layout
            return name, chosen(part, HeadCounts.of(config), config)
    raise KrsError(
        f"krs does not know where {config.model_type} attention projects its {part}: make a point of the module's "
        'path, ActivationPoint(…, role=".self_attn.my_proj", side="output").units(…)'
    )
