"""Vocabulary rows that only one of two models has."""

import numpy as np
import pytest
import torch
from torch import nn

import krs
from krs import ATTN_OUT, MLP_COEF, VALUE_VECTORS, KrsError, windows
from krs.metrics.logits import logit_mse
from tests.tiny import VOCAB, pair, same_state, state
from tests.unlearn.tiny_tokenizer import tiny_tokenizer

PROMPTS = [[5, 9, 11], [7, 3, 22, 8]]


def _more_rows(model, rows, value=9.0):
    """A copy of the embedding and the head with rows added, whose logits would win if they could."""
    model.resize_token_embeddings(VOCAB + rows, mean_resizing=False)
    head = model.get_output_embeddings()
    with torch.no_grad():
        head.weight[VOCAB:] = value * head.weight[:rows].sign()
        model.get_input_embeddings().weight[VOCAB:] = head.weight[VOCAB:]
    return model.eval()


def _padded_head(model, rows):
    """Only the head is padded, as to a multiple of 64; the embedding is not."""
    head = nn.Linear(16, VOCAB + rows, bias=False)
    with torch.no_grad():
        head.weight[:VOCAB] = model.lm_head.weight
        head.weight[VOCAB:] = 9 * head.weight[:rows].sign()
    model.lm_head = head
    return model.eval()


CHANGES = {
    "a row more in the unlearned model": lambda v, u: (v, _more_rows(u, 1)),
    "a row more in the vanilla model": lambda v, u: (_more_rows(v, 1), u),
    "a padded head": lambda v, u: (v, _padded_head(u, 3)),
}


def _sweep(v, u, engine="auto", **options):
    chosen = {"settings": [MLP_COEF, VALUE_VECTORS, ATTN_OUT], "windows": windows.of([[1, 2], [3]]), "n_tokens": 4}
    return krs.sweep(v, u, PROMPTS, progress=False, engine=engine, **(chosen | options))


@pytest.mark.parametrize("engine", ["wavefront", "plain"])
@pytest.mark.parametrize("family", ["llama-bias", "gemma2"])
@pytest.mark.parametrize("name", CHANGES)
def test_shared_rows_are_scored_as_if_there_were_no_others(name, family, engine):
    options = {"tie_word_embeddings": False}
    expected = _sweep(*(m.double() for m in pair(family, **options)), engine)
    v, u = (m.double() for m in CHANGES[name](*pair(family, **options)))
    before = state(v), state(u)
    found = _sweep(v, u, engine, vocabulary="shared")
    np.testing.assert_allclose(found.krs, expected.krs, rtol=0, atol=1e-9)
    np.testing.assert_allclose(found.losses.power, expected.losses.power, rtol=1e-9)
    assert found.answers == expected.answers
    assert found.provenance["vocabulary_rows"] == VOCAB
    assert same_state(v, before[0])
    assert same_state(u, before[1])


@pytest.mark.parametrize("call", ["sweep", "generate", "answers", "drift"])
@pytest.mark.parametrize("name", CHANGES)
def test_rows_that_differ_are_refused_with_the_keyword_that_helps(name, call):
    v, u = CHANGES[name](*pair("llama", tie_word_embeddings=False))
    calls = {
        "sweep": lambda **options: _sweep(v, u, **options),
        "generate": lambda **options: krs.generate(
            v, u, PROMPTS, restore=MLP_COEF.at(1), n_tokens=4, progress=False, **options
        ),
        "answers": lambda **options: krs.metrics.answers(
            v, u, target=["who"], tokenizer=tiny_tokenizer(), n_tokens=3, progress=False, **options
        ),
        "drift": lambda **options: krs.metrics.drift(v, u, **options),
    }
    with pytest.raises(KrsError, match=r"(vocabulary|rows of the LM head): 6\d and 6\d.*vocabulary='shared' scores"):
        calls[call]()
    found = calls[call](vocabulary="shared")
    if call == "generate":
        assert all(token < VOCAB for answer in found.token_ids for token in answer)
    if call == "drift":
        plain = krs.metrics.drift(*pair("llama", tie_word_embeddings=False))
        np.testing.assert_allclose(
            found.frame.set_index("component").loc["embedding", "relative_change"],
            plain.frame.set_index("component").loc["embedding", "relative_change"],
        )


def test_a_prompt_with_a_token_that_one_model_lacks_is_refused():
    v, u = CHANGES["a row more in the unlearned model"](*pair("llama"))
    for call in (krs.sweep, krs.generate):
        with pytest.raises(KrsError, match=rf"prompt 0 has the token id {VOCAB}, but the model's vocabulary has 61"):
            call(v, u, [[3, VOCAB]], n_tokens=2, progress=False, vocabulary="shared")


def test_another_word_for_vocabulary_is_refused(as_a_user):
    with pytest.raises(KrsError, match="vocabulary='all': choose 'same' or 'shared'"):
        _sweep(*pair("llama"), vocabulary="all")


def test_the_mse_of_shared_rows_is_that_of_the_logits_cut_by_hand():
    v, u = CHANGES["a row more in the unlearned model"](*(m.double() for m in pair("llama")))
    found = _sweep(v, u, vocabulary="shared", answers=[[3], [4]], n_tokens=1)
    with torch.no_grad():
        a, b = (m(torch.tensor([PROMPTS[0]])).logits[0, -1, :VOCAB] for m in (u, v))
    np.testing.assert_allclose(found.losses.baseline[0, 0], float(logit_mse(a, b)), rtol=1e-9)
