import copy

import numpy as np
import pytest
import torch

import krs
from krs import KrsError
from krs.hooks import anatomy
from krs.metrics.drift import component_of
from tests.noise import assert_same
from tests.tiny import FAMILIES, build, pair


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


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_every_parameter_of_every_family_has_its_component(name):
    model = build(name)
    body = anatomy(model)
    found = {name: component_of(body, name) for name, _ in model.named_parameters()}
    components = {c for c, _ in found.values()}
    assert {"keys", "value_vectors", "attention_in", "attention_out", "embedding"} <= components
    assert ("norms" in components) == (name not in ("olmo",))
    for layer in range(4):
        assert [c for c, at in found.values() if at == layer].count("value_vectors") == 1
    assert all(p.dim() == 1 for n, p in model.named_parameters() if found[n][0] in ("norms", "biases"))


def test_the_heat_map_has_a_row_a_component():
    axes = krs.metrics.drift(*pair("gpt2")).plot("cosine")
    labels = [t.get_text() for t in axes.get_yticklabels()]
    assert "value vectors" in labels
    assert axes.get_xticklabels()[0].get_text() == "outside"
    with pytest.raises(KrsError, match="value='size'"):
        krs.metrics.drift(*pair("gpt2")).plot("size")


def test_an_adapter_has_to_be_merged_first():
    from peft import LoraConfig, get_peft_model

    v = build("llama", tie_word_embeddings=False)
    config = LoraConfig(r=2, target_modules=["down_proj"], init_lora_weights=False)
    u = get_peft_model(copy.deepcopy(v), config).eval()
    with pytest.raises(KrsError, match="merge adapters first"):
        krs.metrics.drift(v, u)
    merged = u.merge_and_unload().eval()
    frame = krs.metrics.drift(v, merged).by_component()
    assert frame.identical["value_vectors"] < 0.5
    assert np.allclose(frame.identical.drop("value_vectors"), 1)
