"""Attention over packed tokens: each branch of the tree attends to what stands before it, and to itself causally.

It takes the place of a model's attention function (`config._attn_implementation`) during a pass, through the
interface that `transformers` has for that. Families that compute attention in code of their own do not call it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from krs.hooks.interrupts import interrupt_deferred
from krs.restore.wave.packing import Packed

NAME = "krs_packed"
_TREE: ContextVar[Packed] = ContextVar("krs_packed_tree")
_INSIDE: list[str] = []
_LOCK = Lock()
_MADE: WeakKeyDictionary[Packed, dict[Any, Any]] = WeakKeyDictionary()
"""Masks and indices of the trees that there are: they go with the pass that a tree is for."""

_CACHED = 2**20
"""Attention scores that a CPU keeps in its cache between two operations."""


@dataclass(frozen=True, eq=False)
class _Segment:
    """A branch among the packed tokens, and what it attends to.

    Attributes:
        start: its first token.
        stop: one past its last.
        first: where what it attends to begins, among all contexts one after the other.
        end: where that ends.
        mask: additive, `[own, context]`.
    """

    start: int
    stop: int
    first: int
    end: int
    mask: Tensor
    _masks: dict[int, Tensor] = field(default_factory=dict)

    def mask_of(self, groups: int) -> Tensor:
        """The mask once for each of so many heads, `[group * own, context]`."""
        if groups not in self._masks:
            self._masks[groups] = self.mask.repeat(groups, 1)
        return self._masks[groups]


class CannotPackError(Exception):
    """A model's attention asks for something that attention over packed tokens does not do."""


def can_pack(layer: nn.Module) -> bool:
    """Whether a layer's code takes its attention function from the interface that `transformers` has for that."""
    return hasattr(sys.modules[type(layer).__module__], "ALL_ATTENTION_FUNCTIONS")


def switches(model: nn.Module) -> list[Any]:
    """The configurations that say which attention function the model's modules take."""
    found = {id(c): c for m in model.modules() if hasattr(c := getattr(m, "config", None), "_attn_implementation")}
    return list(found.values())


@contextmanager
def attending_eagerly(configs: list[Any]) -> Iterator[None]:
    """Inside, attention is `transformers`' plain one in every module that these `switches` are for."""
    before = [(c, c._attn_implementation_internal) for c in configs]
    try:
        for config, _ in before:
            config._attn_implementation_internal = "eager"
        yield
    finally:
        with interrupt_deferred():
            for config, had in before:
                config._attn_implementation_internal = had


@contextmanager
def attending(configs: list[Any], tree: Packed) -> Iterator[None]:
    """Inside, attention is over packed tokens in every module that these `switches` are for."""
    with _registered(), _switched(configs, tree):
        yield


@contextmanager
def _registered() -> Iterator[None]:
    """Inside, `transformers` knows the attention function by its name; also when several threads are inside."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    with _LOCK:
        _INSIDE.append(NAME)
        ALL_ATTENTION_FUNCTIONS[NAME] = packed_attention
    try:
        yield
    finally:
        with interrupt_deferred(), _LOCK:
            _INSIDE.pop()
            if not _INSIDE:
                del ALL_ATTENTION_FUNCTIONS[NAME]


@contextmanager
def _switched(configs: list[Any], tree: Packed) -> Iterator[None]:
    before = [(c, c._attn_implementation_internal) for c in configs]
    token = _TREE.set(tree)
    try:
        for config, _ in before:
            config._attn_implementation_internal = NAME
        yield
    finally:
        with interrupt_deferred():
            for config, had in before:
                config._attn_implementation_internal = had
            _TREE.reset(token)


def packed_attention(
    module: nn.Module,
    query: Float[Tensor, "row head pos unit"],
    key: Float[Tensor, "row kv_head pos unit"],
    value: Float[Tensor, "row kv_head pos value_unit"],
    attention_mask: Tensor | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **more: Any,
) -> tuple[Float[Tensor, "row pos head value_unit"], None]:
    """What `transformers` calls in place of its own attention functions; the mask is the tree's, not the model's."""
    ignored = {"position_ids", "cache_position", "use_cache", "output_attentions", "is_causal", "output_hidden_states"}
    if asked := [name for name, given in more.items() if given is not None and name not in ignored]:
        raise CannotPackError(f"attention with {', '.join(asked)}")
    index, parts = _plan(_TREE.get(), sliding_window, query)
    gathered = _one_by_one if query.device.type == "cpu" else _at_once
    out = query.new_empty(query.shape[0], query.shape[2], query.shape[1], value.shape[-1])
    for part, keys, values in gathered(key, value, index, parts):
        own = slice(part.start, part.stop)
        out[:, own] = _attend(query[:, :, own], keys, values, part, scaling, softcap).transpose(1, 2)
    return out, None


def _one_by_one(
    key: Tensor, value: Tensor, index: Tensor, parts: list[_Segment]
) -> Iterator[tuple[_Segment, Tensor, Tensor]]:
    """Each branch with the keys and values of what it attends to, gathered when it is due: a CPU has them in cache."""
    for part in parts:
        seen = index[part.first : part.end]
        yield part, key.index_select(2, seen), value.index_select(2, seen)


def _at_once(
    key: Tensor, value: Tensor, index: Tensor, parts: list[_Segment]
) -> Iterator[tuple[_Segment, Tensor, Tensor]]:
    """The same, gathered beforehand by one operation each: an accelerator has fewer to start."""
    keys, values = key.index_select(2, index), value.index_select(2, index)
    for part in parts:
        yield part, keys[:, :, part.first : part.end], values[:, :, part.first : part.end]


def _attend(
    query: Tensor, key: Tensor, value: Tensor, part: _Segment, scaling: float | None, softcap: float | None
) -> Tensor:
    if softcap is None:
        if _is_small(query, key):
            return _by_products(query, key, value, part, scaling)
        grouped = key.shape[1] != query.shape[1]
        return F.scaled_dot_product_attention(query, key, value, attn_mask=part.mask, scale=scaling, enable_gqa=grouped)
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    scores = softcap * torch.tanh(scores / softcap) + part.mask
    return torch.softmax(scores, -1, dtype=torch.float32).to(query.dtype) @ value


def _is_small(query: Tensor, key: Tensor) -> bool:
    """Whether plain products are faster than the fused way: on a CPU, while all scores stay in its cache."""
    fits = query.shape[:3].numel() * key.shape[2] <= _CACHED
    return fits and query.device.type == "cpu" and query.dtype in (torch.float32, torch.float64)


def _by_products(query: Tensor, key: Tensor, value: Tensor, part: _Segment, scaling: float | None) -> Tensor:
    """Attention as two products and a softmax, the queries that share a key's head side by side."""
    rows, heads, own, unit = query.shape
    shared = key.shape[1]
    groups = heads // shared
    asked = query.reshape(rows * shared, groups * own, unit)
    there, kept = (x.reshape(rows * shared, *x.shape[2:]) for x in (key, value))
    scale = unit**-0.5 if scaling is None else scaling
    scores = torch.baddbmm(part.mask_of(groups), asked, there.transpose(1, 2), alpha=scale)
    return torch.bmm(torch.softmax(scores, -1), kept).view(rows, heads, own, -1)


def _plan(tree: Packed, window: int | None, like: Tensor) -> tuple[Tensor, list[_Segment]]:
    """All tokens that each branch attends to, one branch after the other, and the branches."""
    made = _MADE.setdefault(tree, {})
    which = (window, like.dtype, like.device)
    if which not in made:
        index: list[int] = []
        parts: list[_Segment] = []
        for branch in tree.unbroken:
            start = len(index)
            for a, b in (*branch.before, (branch.start, branch.stop)):
                index += range(a, b)
            mask = _mask(branch.n_before, branch.stop - branch.start, *which)
            parts.append(_Segment(branch.start, branch.stop, start, len(index), mask))
        made[which] = torch.tensor(index, device=like.device), parts
    return made[which]


def _mask(before: int, own: int, window: int | None, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Additive, `[own, before + own]`: causal, and no further back than a sliding window reaches."""
    query = torch.arange(before, before + own, device=device)[:, None]
    key = torch.arange(before + own, device=device)[None]
    seen = key <= query
    if window is not None:
        seen &= key > query - window
    return torch.zeros(own, before + own, dtype=dtype, device=device).masked_fill_(~seen, float("-inf"))
