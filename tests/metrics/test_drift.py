import copy

import numpy as np
import pandas as pd
import pytest
import torch

import krs
from krs import KrsError
from tests.adapters import adapted, merged_by_peft
from tests.noise import assert_same
from tests.packed import Packed
from tests.tiny import build, exact_pair, pair, same_state, state


def test_by_hand():
    v, u = pair("llama", tie_word_embeddings=False)
    frame = krs.metrics.drift(v, u).frame.set_index(["component", "layer"])
    a, b = (m.model.layers[2].mlp.down_proj.weight.detach().double().flatten() for m in (v, u))
    row = frame.loc["value_vectors", 2]
    assert_same(row.cosine, float(a @ b / a.norm() / b.norm()))
    assert_same(row.relative_change, float((a - b).norm() / a.norm()))
    assert row.identical == 0
    assert row.parameters == a.numel()
    q = torch.cat([getattr(v.model.layers[1].self_attn, n).weight.flatten() for n in ("q_proj", "k_proj", "v_proj")])
    assert frame.loc["attention_in", 1].parameters == q.numel()
    assert set(frame.index.get_level_values(0)) == {
        "keys", "value_vectors", "attention_in", "attention_out", "norms", "embedding", "unembedding"
    }  # fmt: skip
    assert frame.parameters.sum() == sum(p.numel() for p in v.parameters())


def test_only_what_moved_has_moved():
    v = build("llama")
    u = copy.deepcopy(v)
    with torch.no_grad():
        u.model.layers[1].mlp.gate_proj.weight[0, 0] += 1
    found = krs.metrics.drift(v, u)
    moved = found.frame[found.frame.identical < 1]
    assert list(moved.component) == ["keys"]
    assert list(moved.layer) == [1]
    assert moved.identical.iloc[0] == pytest.approx(1 - 1 / moved.parameters.iloc[0])
    table = found.by_component()
    assert table.relative_change["norms"] == 0
    assert_same(table.cosine_min["value_vectors"], 1.0)
    assert found.tied
    assert "the head is the embedding" in repr(found)
    assert table.parameters["unembedding"] == table.parameters["embedding"]


def test_the_heat_map_has_a_row_a_component():
    axes = krs.metrics.drift(*pair("gpt2")).plot("cosine")
    labels = [t.get_text() for t in axes.get_yticklabels()]
    assert "value vectors" in labels
    assert axes.get_xticklabels()[0].get_text() == "outside"
    with pytest.raises(KrsError, match="value='size'"):
        krs.metrics.drift(*pair("gpt2")).plot("size")


@pytest.mark.parametrize("kind", ["lora", "dora", "ia3", "lora-only-bias"])
def test_an_adapter_drifts_as_its_merged_self(kind):
    v = build("llama-bias", tie_word_embeddings=False)
    u = adapted(v, kind)
    before = state(u)
    found, wanted = krs.metrics.drift(v, u).frame, krs.metrics.drift(v, merged_by_peft(u)).frame
    pd.testing.assert_frame_equal(found, wanted, check_exact=True)
    moved = found.groupby("component").identical.min()
    assert moved["value_vectors"] < 0.5
    assert moved["keys"] == 1
    assert same_state(u, before)


def test_a_bias_that_only_an_adapter_adds_is_a_bias_that_was_zero():
    v = build("llama", tie_word_embeddings=False)
    u = adapted(v, "lora-bias")
    biases = krs.metrics.drift(v, u).by_component().loc["biases"]
    assert biases.identical == 0
    assert np.isnan(biases.relative_change)


def test_what_was_zero_and_moved_counts_among_the_layers_together():
    """Biases that one layer had and another got: the relative change of both is that of all in one vector."""
    v, u = exact_pair("qwen2")
    with torch.no_grad():
        for name, parameter in v.named_parameters():
            if name.endswith("bias") and "layers.0." in name:
                parameter.zero_()
    pairs = [
        (a.detach(), b.detach()) for (n, a), b in zip(v.named_parameters(), u.parameters(), strict=True) if "bias" in n
    ]
    before, after = (torch.cat([p.flatten() for p in side]) for side in zip(*pairs, strict=True))
    found = krs.metrics.drift(v, u)
    assert_same(found.by_component().relative_change["biases"], float((after - before).norm() / before.norm()))
    biases = found.frame[found.frame.component == "biases"].set_index("layer")
    assert np.isnan(biases.relative_change[0])
    assert biases.change[0] > 0


@pytest.mark.parametrize(
    "settings",
    [{"modules_to_save": ["lm_head"]}, {"trainable_token_indices": [5, 9]}, {"target_modules": ["embed_tokens"]}],
)
def test_adapters_outside_the_layers_drift_too(settings):
    v = build("llama", tie_word_embeddings=False)
    u = adapted(v, "lora", **settings)
    found, wanted = krs.metrics.drift(v, u).frame, krs.metrics.drift(v, merged_by_peft(u)).frame
    pd.testing.assert_frame_equal(found, wanted, check_exact=True)
    assert found.set_index("component").identical[["embedding", "unembedding"]].min() < 1


def test_a_head_that_only_one_model_ties_is_compared_with_the_other_head():
    v = build("llama")
    u = copy.deepcopy(v)
    u.lm_head.weight = torch.nn.Parameter(1.5 * v.lm_head.weight.detach())
    found = krs.metrics.drift(v, u)
    table = found.by_component()
    assert not found.tied
    assert table.identical["embedding"] == 1
    assert table.relative_change["unembedding"] == pytest.approx(0.5)


def test_packed_weights_drift_by_what_they_are_unpacked_to():
    v, u = pair("llama")
    for model in (v, u):
        for layer in model.model.layers:
            layer.mlp.down_proj = Packed(layer.mlp.down_proj).eval()
    found = krs.metrics.drift(v, u).frame
    for model in (v, u):
        for layer in model.model.layers:
            packed, linear = layer.mlp.down_proj, torch.nn.Linear(24, 16, bias=False).eval()
            linear.weight = torch.nn.Parameter(packed.unpacked())
            layer.mlp.down_proj = linear
    pd.testing.assert_frame_equal(found, krs.metrics.drift(v, u).frame, check_exact=True)


def test_a_small_change_is_not_lost_in_the_norms():
    v = build("llama").double()
    u = copy.deepcopy(v)
    with torch.no_grad():
        u.model.layers[1].mlp.down_proj.weight += 1e-11
    frame = krs.metrics.drift(v, u).frame.set_index(["component", "layer"])
    weight = v.model.layers[1].mlp.down_proj.weight.detach()
    expected = 1e-11 * weight.numel() ** 0.5 / float(weight.norm())
    assert frame.loc["value_vectors", 1].relative_change == pytest.approx(expected, rel=1e-3)
