"""The second moment of the coefficients: what it is, when it is refused, when the cache may answer."""

import pytest
import torch

import krs
from krs import KrsError
from krs.unlearn.memit import covariance, moments
from krs.unlearn.memit.forward import visit
from tests.noise import assert_same, float64_throughout
from tests.tiny import build, same_state, state
from tests.unlearn.memit_case import CORPUS, edited
from tests.unlearn.tiny_tokenizer import tiny_tokenizer

GIVEN = {"min_tokens": 5, "ridge": 0.1, "progress": False}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path))


@pytest.fixture
def forwards(monkeypatch):
    """How many forwards there were."""
    calls = []
    monkeypatch.setattr(moments, "visit", lambda *args: (calls.append(1), visit(*args))[1])
    return calls


def _found(model, texts=CORPUS, layers=(1, 2), **settings):
    return covariance(model, tiny_tokenizer(), texts, layers, **(GIVEN | settings))


def _plain(model, texts, layer):
    """One text at a time, so that nothing is padded, in float64."""
    keys = []
    for text in texts:
        with krs.hooks.record(model, krs.MLP_COEF, layers=[layer]) as acts:
            model(**tiny_tokenizer()(text, return_tensors="pt", return_token_type_ids=False))
        keys.append(acts[krs.MLP_COEF, layer][0].double())
    k = torch.cat(keys)
    return k.T @ k / len(k), len(k)


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "bloom", "falcon"])
@float64_throughout()
def test_it_is_the_uncentred_second_moment_over_live_tokens(name):
    model = build(name).double()
    found = _found(model, cache=False, ridge=0.0 if name == "llama" else 0.1)
    for layer in (1, 2):
        expected, tokens = _plain(model, CORPUS, layer)
        if name != "llama":
            expected.diagonal().add_(0.1 * expected.trace() / len(expected))
        assert_same(found[layer].matrix, expected)
        assert found[layer].tokens == tokens
        assert found[layer].matrix.dtype == torch.float64
        assert_same(found[layer].condition, float(torch.linalg.cond(expected)), apart=1e-5)
        assert_same(found[layer].trace, float(expected.trace()))
    assert "layer 2: 24 by 24" in repr(found) or name != "llama"


@float64_throughout()
def test_a_token_that_is_also_the_pad_is_counted():
    texts = ["the cat </s> sat on </s>", "a dog"]
    model = build("llama").double()
    expected, tokens = _plain(model, texts, 1)
    found = _found(model, texts, [1], ridge=1e-6, cache=False)[1]
    assert found.tokens == tokens == 8
    expected.diagonal().add_(1e-6 * expected.trace() / len(expected))
    assert_same(found.matrix, expected)


@float64_throughout()
def test_long_documents_are_cut_into_pieces_and_none_of_their_tokens_is_lost():
    model = build("llama").double()
    pieces = ["the cat sat", "on the moon"]
    long = _found(model, [" ".join(pieces)], [1], max_length=3, cache=False)[1]
    short = _found(model, pieces, [1], cache=False)[1]
    assert long.tokens == 6
    assert_same(long.matrix, short.matrix)


def test_what_comes_after_the_last_layer_is_not_computed():
    model = build("llama")
    ran = []
    for module in (model.model.layers[2].mlp.down_proj, model.model.layers[3], model.lm_head):
        module.register_forward_hook(lambda *_: ran.append(1))
    _found(model)
    assert not ran


def test_the_cache_answers_a_second_time_and_gives_the_same_bits(forwards):
    first = _found(build("llama"))
    n = len(forwards)
    assert n > 0
    second = _found(build("llama"))
    assert len(forwards) == n
    assert torch.equal(first[2].matrix, second[2].matrix)
    assert first[2].condition == second[2].condition
    wider = _found(build("llama"), layers=(0, 1, 2))
    assert len(forwards) == 2 * n
    assert torch.equal(wider[2].matrix, first[2].matrix)
    assert torch.equal(_found(build("llama"), cache=False)[1].matrix, first[1].matrix)


def _nudged():
    model = build("llama")
    model.model.layers[1].mlp.up_proj.weight.data[3, 2] += 1e-3
    return model


@pytest.mark.parametrize(
    ("model", "settings"),
    [
        (_nudged, {}),
        (lambda: build("llama", rope_theta=500.0), {}),
        (lambda: build("llama"), {"texts": [*CORPUS, "the sun"]}),
        (lambda: build("llama"), {"max_length": 4}),
        (lambda: build("llama").double(), {}),
    ],
)
def test_another_weight_text_length_or_dtype_is_computed_anew(model, settings, forwards):
    _found(build("llama"))
    n = len(forwards)
    _found(model(), **settings)
    assert len(forwards) > n


def test_other_versions_are_computed_anew(forwards, monkeypatch):
    _found(build("llama"))
    n = len(forwards)
    monkeypatch.setattr(moments, "versions", lambda: {"torch": "99.1.0"})
    _found(build("llama"))
    assert len(forwards) == 2 * n
    monkeypatch.setattr(moments, "versions", lambda: {"torch": "99.1.5", "numpy": "9"})
    _found(build("llama"))
    assert len(forwards) == 2 * n


def test_weights_of_later_layers_and_the_ridge_are_no_matter_to_the_cache(forwards):
    first = _found(build("llama"))
    n = len(forwards)
    model = build("llama")
    model.model.layers[3].mlp.up_proj.weight.data[3, 2] += 1
    second = _found(model, ridge=0.2)
    assert len(forwards) == n
    off = first[1].matrix - torch.diag(first[1].matrix.diag())
    assert torch.equal(off, second[1].matrix - torch.diag(second[1].matrix.diag()))
    assert second[1].condition < first[1].condition


def test_an_edit_with_the_cache_is_the_edit_without_it(forwards):
    plain, _ = edited(build("llama"), steps=2)
    n = len(forwards)
    for _ in range(2):
        cached, _ = edited(build("llama"), steps=2, cache=True)
        assert same_state(cached, state(plain))
    assert len(forwards) == 2 * n


def test_too_little_text_is_refused(as_a_user):
    with pytest.raises(KrsError, match=r"the corpus has 39 tokens, fewer than min_tokens=50: give more text .* 10⁵"):
        _found(build("llama"), min_tokens=50)
    with pytest.raises(KrsError, match="the corpus has 3 tokens for 24 coefficients, .* singular: give more text"):
        _found(build("llama"), ["the cat sat"], min_tokens=1, ridge=0.0)
    with pytest.raises(KrsError, match="the second moment of layer 1 is singular: .* set ridge, such as ridge=0.01"):
        _found(build("llama"), ["the cat sat"] * 20, min_tokens=1, ridge=0.0)
    with pytest.raises(KrsError, match="there is no second moment of layer 3: it was computed for \\[1, 2\\]"):
        _found(build("llama"))[3]
