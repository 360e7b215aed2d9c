import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from krs.prompts import TokenBatch
from krs.restore.wave.attention import _context
from krs.restore.wave.layout import packed
from krs.restore.wave.packing import pack


def _batch(*rows):
    return TokenBatch(tuple(map(tuple, rows)), (1,) * len(rows), tuple((len(r) - 1,) for r in rows))


def _context_of(tree, place):
    """The packed tokens that the token at `place` attends to, itself included."""
    index, spans = _context(tree, torch.device("cpu"))
    for branch, (a, b) in zip(tree.branches, spans, strict=True):
        if branch.start <= place < branch.stop:
            return index[a:b].tolist()[: branch.n_before + place - branch.start + 1]
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
