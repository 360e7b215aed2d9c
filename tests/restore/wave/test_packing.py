import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from krs.prompts import TokenBatch
from krs.restore.wave import attention
from krs.restore.wave.layout import packed
from krs.restore.wave.packing import pack


def _batch(*rows):
    return TokenBatch(tuple(map(tuple, rows)), (1,) * len(rows), tuple((len(r) - 1,) for r in rows))


def _context_of(tree, place):
    """The packed tokens that the token at `place` attends to, itself included."""
    index, parts = attention._plan(tree, None, torch.zeros(1))
    for part in parts:
        if part.start <= place < part.stop:
            return index[part.first : part.end][part.mask[place - part.start] == 0].tolist()
    raise AssertionError(place)


tokens = st.lists(st.integers(0, 2), min_size=1, max_size=7)


@settings(max_examples=60, deadline=None)
@given(st.lists(tokens, min_size=1, max_size=6))
def test_every_token_sees_its_own_sequence_and_nothing_else(rows):
    tree = pack(_batch(*rows))
    for row, places in zip(rows, tree.places, strict=True):
        assert [tree.ids[p] for p in places] == row
        assert [tree.depths[p] for p in places] == list(range(len(row)))
        for n, place in enumerate(places):
            assert _context_of(tree, place) == list(places[: n + 1])


@settings(max_examples=40, deadline=None)
@given(st.lists(tokens, min_size=1, max_size=6))
def test_no_beginning_is_there_twice(rows):
    tree = pack(_batch(*rows))
    beginnings = {tuple(row[: n + 1]) for row in rows for n in range(len(row))}
    assert len(tree) == len(beginnings)


def test_marks_keep_tokens_apart():
    batch = _batch([1, 2, 3], [1, 2, 4])
    assert len(pack(batch)) == 4
    assert len(pack(batch, [[0, 0, 0], [0, 1, 0]])) == 5


def test_nothing_behind_the_last_scored_position_is_kept():
    batch = TokenBatch(((1, 2, 3, 4),), (2,), ((1,),))
    assert pack(batch).ids == (1, 2)


def test_a_layout_marks_restored_positions_prompt_by_prompt():
    batch = TokenBatch(((1, 2, 3), (1, 2, 4, 5)), (2, 3), ((1, 2), (2, 3)))
    layout = packed(batch, {"prompt": "prompt"})
    assert layout.tree is not None
    where = layout.where["prompt"]
    assert where is not None
    for i, places in enumerate(layout.tree.places):
        assert [bool(where[0, p]) for p in places] == [n < batch.prompt_lengths[i] for n in range(len(places))]
    assert layout.scored.tolist() == [layout.tree.places[0][1], layout.tree.places[0][2], *layout.tree.places[1][2:]]


@pytest.mark.parametrize("scaling", [None, 0.3])
@pytest.mark.parametrize(("heads", "shared"), [(6, 2), (4, 4), (3, 1)])
def test_small_attention_by_products_is_the_fused_one(heads, shared, scaling):
    torch.manual_seed(0)
    query = torch.randn(2, 9, heads, 8, dtype=torch.float64).transpose(1, 2)[:, :, 2:7]
    key, value = (torch.randn(2, shared, 11, width, dtype=torch.float64) for width in (8, 5))
    mask = attention._mask(6, 5, 4, torch.float64, query.device)
    assert attention._is_small(query, key)
    found = attention._attend(query, key, value, attention._Segment(2, 7, 0, 11, mask), scaling, None)
    fused = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, scale=scaling, enable_gqa=True
    )
    assert found.shape == fused.shape
    torch.testing.assert_close(found, fused)


def test_attention_is_fused_where_scores_are_many_or_numbers_short():
    small = torch.zeros(2, 4, 64, 8)
    assert attention._is_small(small, small)
    assert not attention._is_small(small.bfloat16(), small.bfloat16())
    wide = torch.zeros(2, 4, 512, 8)
    assert not attention._is_small(wide, wide)
