"""Attention over packed tokens is that of each prompt by itself, and leaves nothing behind."""

import gc
import weakref

import pytest
import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import krs
from krs.prompts import TokenBatch
from krs.restore.wave import allocator, attention
from krs.restore.wave.attention import _MADE, NAME, _registered, packed_attention
from krs.restore.wave.packing import pack
from krs.restore.wave.passes import Pass
from tests.tiny import pair


@pytest.mark.parametrize("stopped", [False, True])
@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_masks_registration_and_malloc_go_with_the_sweep_also_where_it_fails_in_its_middle(
    family, stopped, monkeypatch
):
    libc = _Libc()
    monkeypatch.setattr(allocator, "_glibc", lambda: libc)
    models = pair(family)
    known, masks = dict(ALL_ATTENTION_FUNCTIONS.items()), []
    set_to = [m.config._attn_implementation for m in models]
    inside, real = [], Pass._layer

    def layer(self, number, step):
        real(self, number, step)
        inside.append((len(_MADE), libc.asked[0]))
        masks.extend(weakref.ref(part.mask) for made in _MADE.values() for _, parts in made.values() for part in parts)
        if stopped and number == 2:
            raise ZeroDivisionError

    monkeypatch.setattr(Pass, "_layer", layer)
    ids = [[2, 3, 4, 5], [2, 3, 7], [2, 9]]
    try:
        krs.sweep(*models, ids, windows=1, n_tokens=3, engine="wavefront", progress=False)
    except ZeroDivisionError as error:
        assert stopped
        error.__traceback__ = None  # which holds the frames of the pass
    assert len(inside) == (3 if stopped else 4)
    assert all(trees and asked == (-3, 2**30) for trees, asked in inside)
    assert masks
    gc.collect()
    assert not any(mask() is not None for mask in masks)
    assert len(_MADE) == 0
    assert dict(ALL_ATTENTION_FUNCTIONS.items()) == known
    assert NAME not in known
    assert [m.config._attn_implementation for m in models] == set_to
    assert libc.asked[-3:] == [(-3, 32 * 2**20), (-1, 64 * 2**20), "trim"]


def test_the_registration_stays_while_another_pass_needs_it():
    with _registered():
        with _registered():
            pass
        assert NAME in ALL_ATTENTION_FUNCTIONS
    assert NAME not in ALL_ATTENTION_FUNCTIONS


class _Libc:
    def __init__(self):
        self.asked = []

    def mallopt(self, option, value):
        self.asked.append((option, value))

    def malloc_trim(self, _):
        self.asked.append("trim")


@pytest.mark.parametrize(
    ("environment", "mmap", "trim"),
    [
        ({}, 32 * 2**20, 64 * 2**20),
        ({"MALLOC_MMAP_THRESHOLD_": "65536"}, 65536, 64 * 2**20),
        ({"GLIBC_TUNABLES": "glibc.malloc.arena_max=1:glibc.malloc.trim_threshold=0x20000"}, 32 * 2**20, 131072),
    ],
)
def test_afterwards_malloc_is_as_the_user_set_it(monkeypatch, environment, mmap, trim):
    libc = _Libc()
    monkeypatch.setattr(allocator, "_glibc", lambda: libc)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with allocator.freed_memory_kept():
        libc.asked.clear()
    assert libc.asked == [(-3, mmap), (-1, trim), "trim"]


TREES = {
    "forks in forks": ((1, 2, 3, 4), (1, 2, 3, 5, 6), (1, 2, 7, 8, 9), (1, 9, 9)),
    "one is how another begins": ((1, 2), (1, 2, 3, 4), (1, 2, 3, 5)),
    "nothing shared": ((1, 2, 3), (4, 5)),
    "twice the same": ((1, 2, 3), (1, 2, 3), (1, 4)),
}


@pytest.mark.parametrize("gathered", ["one by one", "at once"])
@pytest.mark.parametrize("window", [None, 2])
@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("shared_heads", [1, 2])
@pytest.mark.parametrize("tokens", TREES.values(), ids=TREES)
def test_packed_attention_is_that_of_each_prompt_by_itself(
    tokens, shared_heads, softcap, window, gathered, monkeypatch
):
    if gathered == "at once":
        monkeypatch.setattr(attention, "_one_by_one", attention._at_once)
    within = 1e-12 if softcap is None else 1e-6  # a softmax in float32, as the family has it
    n = len(tokens)
    tree = pack(TokenBatch(tokens, (1,) * n, tuple((len(t) - 1,) for t in tokens)))
    torch.manual_seed(0)
    rows, heads, unit, asked = 3, 4, 6, {"scaling": 0.7, "softcap": softcap, "sliding_window": window}
    query = torch.randn(rows, heads, len(tree), unit, dtype=torch.float64)
    key, value = torch.randn(2, rows, heads // shared_heads, len(tree), unit, dtype=torch.float64)
    token = attention._TREE.set(tree)
    try:
        found, _ = packed_attention(torch.nn.Module(), query, key, value, **asked)
    finally:
        attention._TREE.reset(token)
    for place in tree.places:
        for i, at in enumerate(place):
            seen = place[0 if window is None else max(0, i + 1 - window) : i + 1]
            for head in range(heads):
                scores = key[:, head // shared_heads, seen] @ query[:, head, at, :, None] * 0.7
                scores = scores if softcap is None else softcap * (scores / softcap).tanh()
                there = (scores.softmax(1) * value[:, head // shared_heads, seen]).sum(1)
                torch.testing.assert_close(found[:, at, head], there, rtol=0, atol=within)
