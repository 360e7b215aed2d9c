"""Models of nnsight and nnterp are the models in them."""

import copy

import numpy as np
import pytest
import torch

import krs
from krs import ATTN_OUT, KrsError
from krs.hooks import record, unwrap
from tests.tiny import pair

nnsight = pytest.importorskip("nnsight", reason="nnsight is not installed")
PROMPTS = [[5, 9, 11], [7, 3, 22, 8]]


def _of_nnsight(model):
    return nnsight.NNsight(model)


def _of_nnterp(model):
    nnterp = pytest.importorskip(
        "nnterp", reason="nnterp is not installed, or does not go with this nnsight", exc_type=ImportError
    )
    from tests.unlearn.tiny_tokenizer import tiny_tokenizer

    return nnterp.StandardizedTransformer(model, tokenizer=tiny_tokenizer(), check_renaming=False)


@pytest.mark.parametrize("wrap", [_of_nnsight, _of_nnterp])
def test_a_traced_model_has_the_scores_of_the_model_in_it(wrap):
    v, u = pair("llama")
    expected = krs.sweep(v, u, PROMPTS, windows=3, n_tokens=3, progress=False)
    ours, theirs = wrap(copy.deepcopy(v)), wrap(copy.deepcopy(u))
    for a, b in ((ours, theirs), (v, theirs), (ours, u)):
        found = krs.sweep(a, b, PROMPTS, windows=3, n_tokens=3, progress=False)
        assert found.provenance["engine"] == "wavefront"
        np.testing.assert_allclose(found.krs, expected.krs, rtol=0, atol=1e-6)
    assert isinstance(unwrap(ours), type(v))
    with record(ours, ATTN_OUT, layers=[1]) as acts, torch.no_grad():
        unwrap(ours)(torch.tensor([[3, 5]]))
    assert acts[ATTN_OUT, 1].shape == (1, 2, 16)


def test_edits_of_nnsight_are_refused():
    v, u = pair("llama")
    edited = nnsight.NNsight(u)
    with edited.edit(inplace=True):
        edited.model.layers[1].output = edited.model.layers[1].output * 0
    with pytest.raises(KrsError, match=r"unlearned is an nnsight model with edits.*unlearned\.clear_edits\(\)"):
        krs.sweep(v, edited, PROMPTS, progress=False)
    edited.clear_edits()
    assert unwrap(edited) is u


def test_an_nnsight_model_without_weights_is_refused():
    v, _ = pair("llama")
    with torch.device("meta"):
        empty = type(v)(v.config)
    with pytest.raises(KrsError, match="without its weights: load it with dispatch=True"):
        krs.sweep(v, nnsight.NNsight(empty), PROMPTS, progress=False)
