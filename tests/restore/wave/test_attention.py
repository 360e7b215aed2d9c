"""What attention over packed tokens leaves behind: nothing."""

import gc
import weakref

import pytest
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import krs
from krs.restore.wave import allocator
from krs.restore.wave.attention import _MADE, NAME, _registered
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
