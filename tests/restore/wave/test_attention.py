"""What attention over packed tokens leaves behind: nothing."""

import gc

import pytest
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import krs
from krs.restore.wave import allocator
from krs.restore.wave.attention import _MADE, NAME, _registered
from tests.tiny import pair


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_masks_and_the_registration_go_with_the_sweep(family):
    ids = [[2, 3, 4, 5], [2, 3, 7], [2, 9]]
    krs.sweep(*pair(family), ids, windows=1, n_tokens=3, engine="wavefront", progress=False)
    gc.collect()
    assert len(_MADE) == 0
    assert NAME not in ALL_ATTENTION_FUNCTIONS


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
