"""A TransformerLens bridge is the plain model that it was made of: same points, same engine, same scores."""

import copy
import warnings

import numpy as np
import pytest
import torch

import krs
from krs import ATTN_KEY, ATTN_QUERY, ATTN_WEIGHTS, HEAD_OUT, RESID, WEIGHTS, KrsError, windows
from krs.hooks.bridges import without_bridge
from tests.noise import EXACT, float64_throughout
from tests.tiny import exact_pair, pair, same_state, state

PROMPTS = [[5, 9, 11], [7, 3, 22, 8]]
POINTS = ["mlp_coef+attn_out", "value_vectors", RESID, HEAD_OUT.heads(1), ATTN_QUERY + ATTN_KEY, WEIGHTS, ATTN_WEIGHTS]
BRIDGED = ["llama", "gpt2", "gpt_neox", "gptj", "olmo", "olmo2", "gemma2", "qwen3", "phi3", "falcon", "opt", "mpt"]


def bridge(model):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformer_lens.model_bridge.sources import build_bridge_from_module

        return build_bridge_from_module(model, type(model).__name__, hf_config=model.config).eval()


def _heads(name):
    """TransformerLens reads a number of key-value heads that these families do not use."""
    return {"num_key_value_heads": 2} if name in ("gpt_neox", "olmo") else {}


def _sweep(v, u, settings=POINTS):
    return krs.sweep(v, u, PROMPTS, settings=settings, windows=windows.of([[1, 2], [3]]), n_tokens=4, progress=False)


@pytest.mark.parametrize("name", BRIDGED)
def test_bridges_have_the_plain_models_scores_on_the_wavefront_either_way_round(name):
    v, u = exact_pair(name, **_heads(name))
    with float64_throughout():
        expected = _sweep(v, u)
        ours, theirs = bridge(copy.deepcopy(v)), bridge(copy.deepcopy(u))
        before = state(theirs.original_model)
        for a, b in ((ours, theirs), (ours, u), (v, theirs)):
            found = _sweep(a, b)
            assert found.provenance["engine"] == "wavefront"
            np.testing.assert_allclose(found.krs, expected.krs, rtol=0, atol=EXACT)
    assert same_state(theirs.original_model, before)
    assert any("bridge" in type(m).__name__.lower() for m in theirs.original_model.modules())


def test_the_model_in_a_bridge_has_the_bridges_own_parameters():
    v, _ = pair("llama")
    wrapped = bridge(copy.deepcopy(v))
    plain = without_bridge(wrapped.original_model)
    assert {id(p) for p in plain.parameters()} <= {id(p) for p in wrapped.original_model.parameters()}
    assert without_bridge(v) is v


def test_hooks_that_somebody_added_act_and_send_the_sweep_to_the_plain_engine():
    v, u = exact_pair("llama")
    ours, theirs = bridge(copy.deepcopy(v)), bridge(copy.deepcopy(u))
    theirs.add_hook("blocks.1.hook_out", lambda value, hook: 0.5 * value)
    u.model.layers[1].register_forward_hook(lambda module, args, output: 0.5 * output)
    with float64_throughout():
        found, expected = (_sweep(a, b, ["mlp_coef", "attn_out"]) for a, b in ((ours, theirs), (v, u)))
        beside_plain = _sweep(v, theirs, ["mlp_coef", "attn_out"])
    for result in (found, beside_plain):
        assert result.provenance["engine"] == "plain"
        assert "there are hooks on" in result.provenance["engine_note"]
        np.testing.assert_allclose(result.krs, expected.krs, rtol=0, atol=EXACT)


def test_queries_changed_in_the_bridge_alone_are_refused():
    v, u = pair("gpt2")
    changed = bridge(u)
    linear = changed.blocks[1].attn.q.original_component
    linear.weight = torch.nn.Parameter(1.001 * linear.weight.detach())
    with pytest.raises(KrsError, match=r"unlearned is a TransformerLens bridge with at .*queries, keys or values"):
        _sweep(bridge(v), changed)


def test_a_forward_that_gives_other_logits_is_refused(monkeypatch):
    v, u = pair("llama")
    changed = bridge(u)
    part = type(changed.blocks[1].mlp)
    forward = part.forward
    monkeypatch.setattr(part, "forward", lambda self, *args, **kwargs: 2 * forward(self, *args, **kwargs))
    with pytest.raises(KrsError, match=r"other logits than the model inside it"):
        krs.sweep(v, changed, PROMPTS, progress=False)


def test_generate_and_drift_take_a_bridge_beside_a_plain_model():
    v, u = pair("gpt2")
    restore = krs.ATTN_OUT.at(1, 2)
    expected = krs.generate(v, u, PROMPTS, restore=restore, n_tokens=4, progress=False)
    assert krs.generate(bridge(copy.deepcopy(v)), u, PROMPTS, restore=restore, n_tokens=4, progress=False) == expected
    drifted = krs.metrics.drift(v, u).frame
    np.testing.assert_allclose(
        krs.metrics.drift(bridge(copy.deepcopy(v)), u).frame.select_dtypes("number"), drifted.select_dtypes("number")
    )
