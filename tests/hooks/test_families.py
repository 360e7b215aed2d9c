import pytest
import torch

from krs import ATTN_OUT, MLP_COEF, VALUE_VECTORS, KrsError
from krs.hooks import Family, WeightPoint, anatomy, families, patched, record, register_family, self_check
from krs.hooks.points import ActivationPoint
from tests import by_hand
from tests.noise import assert_same
from tests.tiny import FAMILIES, build, same_state, state


@pytest.mark.parametrize("name", FAMILIES)
def test_self_check_of_every_layer_passes_and_leaves_no_trace(name):
    model = build(name)
    before = state(model)
    found = self_check(model, every_layer=True)
    assert found.noop == 0.0
    assert found.n_layers == 4
    assert all(change > 1e-3 for change in found.effect.values())
    assert same_state(model, before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("name", FAMILIES)
def test_value_vectors_are_rows_whatever_the_layout(name):
    model = build(name).double()
    ids = torch.tensor([[3, 5, 8]])
    module = by_hand._module(model, 2, 0)
    out = {}
    module.register_forward_hook(lambda _, a, o: out.update(y=o.clone()))
    with record(model, MLP_COEF + VALUE_VECTORS, layers=[2]) as acts, torch.no_grad():
        model(ids)
    m, w = acts[MLP_COEF, 2], acts[VALUE_VECTORS, 2]
    assert m.shape[-1] == w.shape[0]
    bias = module.bias if module.bias is not None else 0
    assert_same(m @ w + bias, out["y"].reshape(1, 3, -1))


def test_attention_plus_mlp_plus_input_is_the_output_of_a_pre_norm_layer():
    model = build("llama").double()
    mlp_out = ActivationPoint("t_mlp_out", role="mlp_out_proj", label="MLP outputs", side="output")
    seen = {}
    model.model.layers[1].register_forward_hook(lambda _, a, o: seen.update(x=a[0], y=o))
    with record(model, ATTN_OUT + mlp_out, layers=[1]) as acts, torch.no_grad():
        model(torch.tensor([[3, 5, 8]]))
    assert_same(seen["x"] + acts[ATTN_OUT, 1] + acts[mlp_out, 1], seen["y"])


def test_moe_layers_have_attention_but_no_mlp_points():
    model = build("moe")
    assert self_check(model, ATTN_OUT).noop == 0.0
    with pytest.raises(KrsError, match=r"several experts.*settings=\['attn_out'\] works"):
        self_check(model, MLP_COEF)


def test_an_unknown_family_names_the_remedy():
    model = build("llama")
    model.config.model_type = "llamb"
    with pytest.raises(KrsError, match=r"unknown model family 'llamb'.*register_family"):
        anatomy(model)


@pytest.fixture
def registry(monkeypatch):
    monkeypatch.setattr(families, "BY_TYPE", families.BY_TYPE.copy())


def _mine(**roles: str) -> Family:
    places = {"mlp_out_proj": "mlp.down_proj", "attn_out_proj": "self_attn.o_proj"} | roles
    return Family("mine", ("mine",), "model.layers", places, "model.norm")


def test_users_can_add_a_family(registry):
    model = build("llama")
    model.config.model_type = "mine"
    register_family(_mine())
    assert self_check(model).noop == 0.0


def test_the_self_check_finds_a_module_that_is_not_what_it_is_said_to_be(registry):
    model = build("llama")
    model.config.model_type = "mine"
    register_family(_mine(mlp_out_proj="mlp.missing"))
    with pytest.raises(KrsError, match=r"no module 'model.layers.0.mlp.missing'"):
        self_check(model)

    model.model.layers[1].mlp.spare = torch.nn.Linear(24, 16)
    model.model.layers[0].mlp.spare = torch.nn.Linear(24, 16)
    for layer in model.model.layers[2:]:
        layer.mlp.spare = torch.nn.Linear(24, 16)
    register_family(_mine(mlp_out_proj="mlp.spare"), replace=True)
    with pytest.raises(KrsError, match=r"'model.layers.0.mlp.spare' never fired.*fused"):
        self_check(model)


def test_a_family_is_not_replaced_unasked(registry):
    with pytest.raises(
        KrsError, match="model type 'llama' is registered already, by krs.hooks.families: pass replace=True"
    ):
        register_family(Family("other", ("llama",), "model.layers", {}, "model.norm"))


def test_a_further_point_of_either_kind_is_a_dozen_lines_in_one_place(registry):
    """A new activation point needs a name; a new weight point of several matrices, a role in its family."""
    keys = WeightPoint("t_keys", role="mlp_in_proj", label="MLP keys")
    mlp_out = ActivationPoint("t_mlp_out", role="mlp_out_proj", label="MLP outputs", side="output")
    family = families.family_of("llama")
    roles = {**family.roles, "mlp_in_proj": ("mlp.gate_proj", "mlp.up_proj")}
    register_family(Family("with keys", ("llama",), family.layers, roles, family.final_norm), replace=True)

    v, u = build("llama"), build("llama", seed=1)
    ids = torch.tensor([[3, 5, 8]])
    before = state(u)
    assert self_check(u, keys + mlp_out, every_layer=True).noop == 0.0
    with record(v, mlp_out) as acts, torch.no_grad():
        v(ids)
    with patched(u, keys.at(1).set(v), mlp_out.at(2).set(acts)):
        assert torch.equal(u.model.layers[1].mlp.gate_proj.weight, v.model.layers[1].mlp.gate_proj.weight)
        assert torch.equal(u.model.layers[1].mlp.up_proj.weight, v.model.layers[1].mlp.up_proj.weight)
        u(ids)
    assert same_state(u, before)
