"""Queries, keys and values of every family: what its own attention function is called with."""

import pytest
import torch

from krs import ATTN_KEY, ATTN_QUERY, ATTN_VALUE, HEAD_OUT, KrsError
from krs.hooks import ActivationPoint, anatomy, record
from tests.tiny import FAMILIES, build

IDS = torch.tensor([[3, 5, 8, 13, 21]])
HEADS = 2


def _values(name):
    model = build(name)
    with record(model, ATTN_QUERY + ATTN_KEY + ATTN_VALUE, layers=[1]) as acts, torch.no_grad():
        model(input_ids=IDS)
    return acts


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_a_heads_values_are_what_its_output_is_made_of(name):
    """Attention is a mean over values, head by head: with one token, a head puts out its (group's) value."""
    model = build(name)
    with record(model, ATTN_VALUE + HEAD_OUT, layers=[1]) as acts, torch.no_grad():
        model(input_ids=IDS[:, :1])
    value, out = acts[ATTN_VALUE, 1], acts[HEAD_OUT, 1]
    kv = value.shape[-1] * HEADS // out.shape[-1]
    expected = value.reshape(1, 1, kv, -1).repeat_interleave(HEADS // kv, dim=2).reshape(out.shape)
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize("name", ["gpt2", "phi3", "gpt_neox", "bloom", "falcon", "mpt", "falcon-sequential-alibi"])
def test_the_parts_of_a_fused_projection_are_all_of_it_once(name):
    model = build(name)
    body = anatomy(model)
    units = [u for p in (ATTN_QUERY, ATTN_KEY, ATTN_VALUE) for u in body.units(p, 1)]
    width = body._width(ActivationPoint("x", role="." + body.paths(ATTN_QUERY, 1)[0], label="", side="output"), 1)
    assert sorted(units) == list(range(width))


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "falcon", "phi3"])
def test_queries_and_keys_are_told_apart(name):
    """A change of the queries' unit moves the queries only: the attention's scores change, its values do not."""
    acts = _values(name)
    for point in (ATTN_QUERY, ATTN_KEY, ATTN_VALUE):
        assert acts[point, 1].shape[-1] % 8 == 0
    assert not torch.equal(acts[ATTN_QUERY, 1][..., :8], acts[ATTN_KEY, 1][..., :8])


def test_one_query_head_of_grouped_attention():
    body = anatomy(build("llama"))
    assert body.units(ATTN_QUERY.heads(1), 0) == tuple(range(8, 16))
    assert body.units(ATTN_KEY.heads(0), 0) == tuple(range(8))
    with pytest.raises(KrsError, match="head 1 is out of range, there are 1 at layer 0"):
        body.units(ATTN_KEY.heads(1), 0)
