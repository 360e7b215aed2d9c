import pytest

from krs.hooks import Family, anatomy, families, register_family
from krs.hooks.components import COMPONENTS, component_of
from tests.adapters import adapted
from tests.tiny import FAMILIES, HYBRIDS, build


def _components(model):
    body = anatomy(model)
    return {name: component_of(body, name) for name, _ in body.model.named_parameters()}


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_every_parameter_of_every_family_has_its_component(name):
    model = build(name)
    found = _components(model)
    components = {c for c, _ in found.values()}
    assert {"keys", "value_vectors", "attention_in", "attention_out", "embedding"} <= components <= {*COMPONENTS}
    assert "other" not in components
    assert ("norms" in components) == (name not in ("olmo",))
    for layer in range(4):
        assert [c for c, at in found.values() if at == layer].count("value_vectors") == 1
    assert all(p.dim() == 1 for n, p in model.named_parameters() if found[n][0] in ("norms", "biases"))


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_input_projections_are_where_the_family_says(name):
    """Keys take what the layer's MLP takes and return what its output projection takes, once or twice."""
    model = build(name)
    body = anatomy(model)
    (out,) = body.family.paths("mlp_out_proj")
    for layer in body.layers:
        width = sorted(layer.get_submodule(out).weight.shape)[1]
        rows = [sum(layer.get_submodule(p).weight.shape) - 16 for p in body.family.paths("mlp_in")]
        assert sum(rows) in (width, 2 * width)
        assert all(layer.get_submodule(p).weight.dim() == 2 for p in body.family.paths("attn_in"))
    found = _components(model)
    inside = [n for n, (c, _) in found.items() if c == "keys"]
    assert len(inside) == 4 * len(body.family.paths("mlp_in"))
    assert len([c for c, _ in found.values() if c == "attention_in"]) == 4 * len(body.family.paths("attn_in"))


@pytest.mark.parametrize("name", sorted(HYBRIDS))
def test_what_mixes_tokens_counts_as_attention(name):
    found = _components(build(name))
    assert "other" not in {c for c, _ in found.values()}
    for layer in range(4):
        inside = {n.split(f".{layer}.")[1]: c for n, (c, at) in found.items() if at == layer}
        mixer = {c for n, c in inside.items() if n.startswith(("linear_attn.", "conv.", "self_attn."))}
        assert {"attention_in", "attention_out"} <= mixer <= {"attention_in", "attention_out", "norms"}
        assert [*inside.values()].count("attention_out") == 1
    if name == "lfm2":
        assert found["model.layers.0.conv.conv.weight"] == ("attention_in", 0)
    else:
        assert found["model.layers.0.linear_attn.A_log"] == ("attention_in", 0)


def test_what_a_layer_has_besides_is_other():
    import torch

    model = build("opt")
    model.model.decoder.layers[1].register_parameter("gate", torch.nn.Parameter(torch.ones(1)))
    model.model.decoder.layers[1].extra = torch.nn.Linear(2, 2)
    found = _components(model)
    assert found["model.decoder.layers.1.gate"] == ("other", 1)
    assert found["model.decoder.layers.1.extra.weight"] == ("other", 1)
    assert found["model.decoder.layers.1.fc1.weight"] == ("keys", 1)


@pytest.mark.parametrize("model_type", ["mixtral", "qwen2_moe"])
def test_mixtures_of_experts_have_experts_and_a_router(model_type):
    model = build("moe")
    if model_type == "qwen2_moe":
        from transformers import AutoConfig, AutoModelForCausalLM

        small = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
        more = {"num_experts": 2, "moe_intermediate_size": 8, "shared_expert_intermediate_size": 8, "vocab_size": 61}
        config = AutoConfig.for_model(model_type, num_key_value_heads=1, num_experts_per_tok=1, **small, **more)
        model = AutoModelForCausalLM.from_config(config).eval()
    found = {name.split(".0.")[1]: c for name, (c, at) in _components(model).items() if at == 0}
    assert found["mlp.gate.weight"] == "router"
    assert {c for name, c in found.items() if "expert" in name and "gate.weight" not in name} == {"experts"}
    if model_type == "qwen2_moe":
        assert found["mlp.shared_expert_gate.weight"] == "router"
    assert "other" not in found.values()
    assert "keys" not in found.values()


def test_a_family_that_names_no_input_projections_has_them_beside_the_output(monkeypatch):
    monkeypatch.setattr(families, "BY_TYPE", families.BY_TYPE.copy())
    known = families.family_of("llama")
    roles = {"mlp_out_proj": "mlp.down_proj", "attn_out_proj": "self_attn.o_proj"}
    register_family(Family("short", ("llama",), known.layers, roles, known.final_norm), replace=True)
    found = _components(build("llama-bias"))
    assert found["model.layers.1.mlp.gate_proj.weight"] == ("keys", 1)
    assert found["model.layers.1.self_attn.k_proj.weight"] == ("attention_in", 1)
    assert found["model.layers.1.self_attn.o_proj.weight"] == ("attention_out", 1)


def test_an_adapters_own_parameters_count_as_what_they_are_around():
    found = _components(adapted(build("llama", tie_word_embeddings=False), "lora"))
    assert found["model.layers.1.mlp.down_proj.base_layer.weight"] == ("value_vectors", 1)
    assert found["model.layers.1.mlp.down_proj.lora_A.default.weight"] == ("value_vectors", 1)
    assert found["model.layers.1.self_attn.q_proj.lora_B.default.weight"] == ("attention_in", 1)
