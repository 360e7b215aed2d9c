import os
import signal

import pytest
import torch

from krs import ATTN_OUT, MLP_COEF, VALUE_VECTORS, WEIGHTS, KrsError
from krs.hooks import patched, record
from tests.noise import assert_same
from tests.tiny import build, exact_pair, pair, same_state, state

IDS = torch.tensor([[3, 5, 8, 13], [2, 4, 6, 9]])


def _run(model, ids=IDS):
    with torch.no_grad():
        return model(input_ids=ids).logits


def _record(model, what, **kw):
    with record(model, what, **kw) as acts:
        _run(model)
    return acts


def test_recording_keeps_what_was_asked_for_only():
    v, _ = pair("llama")
    acts = _record(v, MLP_COEF + ATTN_OUT, layers=range(1, 3))
    assert set(acts) == {(MLP_COEF, 1), (MLP_COEF, 2), (ATTN_OUT, 1), (ATTN_OUT, 2)}
    assert acts[MLP_COEF, 1].shape == (2, 4, 24)
    assert acts[ATTN_OUT, 2].shape == (2, 4, 16)
    assert not acts[MLP_COEF, 1].requires_grad
    assert "mlp_coef+attn_out at layers 1, 2: 4 values" in repr(acts)
    with pytest.raises(KrsError, match="value_vectors at layer 1 is not in"):
        acts[VALUE_VECTORS, 1]


def test_what_is_handed_out_is_a_copy():
    v, _ = pair("llama")
    acts = _record(v, MLP_COEF)
    acts[MLP_COEF, 0].zero_()
    assert acts[MLP_COEF, 0].abs().sum() > 0


def test_the_coefficients_are_gate_times_up():
    v, _ = exact_pair("llama")
    acts = _record(v, MLP_COEF)
    seen = {}
    mlp = v.model.layers[2].mlp
    mlp.register_forward_pre_hook(lambda _, a: seen.update(x=a[0]))
    _run(v)
    with torch.no_grad():
        expected = mlp.act_fn(mlp.gate_proj(seen["x"])) * mlp.up_proj(seen["x"])
    assert_same(acts[MLP_COEF, 2], expected)


def test_restoring_everything_in_every_layer_leaves_only_what_lies_outside_the_layers():
    v, u = exact_pair("llama")
    acts = _record(v, MLP_COEF + ATTN_OUT)
    for name in ("embed_tokens", "norm"):
        v_part, u_part = v.model.get_submodule(name), u.model.get_submodule(name)
        u_part.load_state_dict(v_part.state_dict())
    patches = [(MLP_COEF + ATTN_OUT).at(*range(4)).set(acts), VALUE_VECTORS.at(*range(4)).set(v)]
    assert not torch.allclose(_run(u), _run(v), atol=1e-3)
    with patched(u, *patches):
        assert_same(_run(u), _run(v))


def test_weights_of_another_model_or_of_a_recording():
    v, u = pair("gpt2")
    before = state(u)
    with patched(u, VALUE_VECTORS.at(1, 3).set(v)):
        assert torch.equal(u.transformer.h[1].mlp.c_proj.weight, v.transformer.h[1].mlp.c_proj.weight)
        assert not torch.equal(u.transformer.h[1].mlp.c_proj.bias, v.transformer.h[1].mlp.c_proj.bias)
        assert not torch.equal(u.transformer.h[2].mlp.c_proj.weight, v.transformer.h[2].mlp.c_proj.weight)
        from_model = _run(u)
    with patched(u, VALUE_VECTORS.at(1, 3).set(_record(v, VALUE_VECTORS))):
        assert torch.equal(_run(u), from_model)
    assert same_state(u, before)


def test_units_are_single_coefficients_and_single_value_vectors():
    _, u = pair("llama")
    with (
        patched(u, MLP_COEF.at(1, units=[3, -1]).map(torch.zeros_like)),
        record(u, MLP_COEF, layers=[1]) as acts,
    ):
        _run(u)
    zero = (acts[MLP_COEF, 1] == 0).all(dim=(0, 1))
    assert zero.nonzero().flatten().tolist() == [3, 23]
    plain = u.model.layers[1].mlp.down_proj.weight.clone()
    with patched(u, VALUE_VECTORS.at(1, units=[5]).map(lambda w: 2 * w)):
        now = u.model.layers[1].mlp.down_proj.weight
        assert torch.equal(now[:, 5], 2 * plain[:, 5])
        assert torch.equal(now[:, :5], plain[:, :5])


def test_positions_and_units_together_touch_their_crossing_only():
    _, u = pair("llama")
    plain = _record(u, MLP_COEF, layers=[1])[MLP_COEF, 1]
    place = MLP_COEF.at(1, positions=[0, -1], units=[2, 4])
    with patched(u, place.map(lambda a: a * 0 + 7)), record(u, MLP_COEF, layers=[1]) as acts:
        _run(u)
    changed = acts[MLP_COEF, 1] != plain
    _, positions, units = changed.nonzero(as_tuple=True)
    assert set(positions.tolist()) == {0, 3}
    assert set(units.tolist()) == {2, 4}
    assert changed.sum() == 2 * 2 * 2


def test_a_mask_says_where_row_by_row():
    v, u = pair("llama")
    acts = _record(v, ATTN_OUT)
    where = torch.tensor([[True, False, False, True], [False, False, True, False]])
    with patched(u, ATTN_OUT.at(1).set(acts, where=where)), record(u, ATTN_OUT, layers=[1]) as now:
        _run(u)
    is_vanilla = (now[ATTN_OUT, 1] == acts[ATTN_OUT, 1]).all(-1)
    assert torch.equal(is_vanilla, where)


def test_blocks_nest_and_the_inner_one_sees_the_outer_one():
    _, u = exact_pair("llama")
    plain = _record(u, ATTN_OUT, layers=[1])[ATTN_OUT, 1]
    with patched(u, ATTN_OUT.at(1).map(lambda a: a + 1)):
        with patched(u, ATTN_OUT.at(1).map(lambda a: 2 * a)), record(u, ATTN_OUT, layers=[1]) as acts:
            _run(u)
        assert_same(acts[ATTN_OUT, 1], 2 * (plain + 1))
        with record(u, ATTN_OUT, layers=[1]) as acts:
            _run(u)
        assert_same(acts[ATTN_OUT, 1], plain + 1)


def test_nested_weight_patches_come_off_in_reverse():
    v, u = pair("llama")
    before = state(u)
    with patched(u, VALUE_VECTORS.at(1).set(v)):
        half = u.model.layers[1].mlp.down_proj.weight.clone()
        with patched(u, VALUE_VECTORS.at(1).map(torch.zeros_like)):
            assert u.model.layers[1].mlp.down_proj.weight.abs().sum() == 0
        assert torch.equal(u.model.layers[1].mlp.down_proj.weight, half)
    assert same_state(u, before)


@pytest.mark.parametrize("stop", [RuntimeError, KeyboardInterrupt])
def test_after_an_exception_the_model_is_bit_for_bit_what_it_was(stop):
    v, u = pair("llama")
    before, logits = state(u), _run(u)
    acts = _record(v, MLP_COEF)

    def interrupt(a):
        raise stop

    with pytest.raises(stop):
        with patched(u, MLP_COEF.at(0).set(acts), VALUE_VECTORS.at(0, 1, 2).set(v), ATTN_OUT.at(3).map(interrupt)):
            _run(u)
    assert same_state(u, before)
    assert torch.equal(_run(u), logits)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in u.modules())


def _ctrl_c(value):
    os.kill(os.getpid(), signal.SIGINT)
    return 0 * value


def test_ctrl_c_while_patches_are_put_in_place():
    _, u = pair("llama")
    before = state(u)
    with pytest.raises(KeyboardInterrupt):
        with patched(u, VALUE_VECTORS.at(0, 1).map(_ctrl_c), ATTN_OUT.at(1).set(0.0)):
            pytest.fail("the block was entered")
    assert same_state(u, before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in u.modules())


def test_ctrl_c_while_patches_are_taken_away(monkeypatch):
    v, u = pair("llama")
    before = state(u)
    import sys

    module = sys.modules["krs.hooks.patch"]

    real = module.replace_point

    def slow_undo(*args):
        undo = real(*args)
        return lambda: (_ctrl_c(0), undo())

    monkeypatch.setattr(module, "replace_point", slow_undo)
    with pytest.raises(KeyboardInterrupt):
        with patched(u, VALUE_VECTORS.at(0, 1).set(v)):
            pass
    assert same_state(u, before)


def test_a_failure_on_entry_undoes_what_was_applied_before_it():
    v, u = pair("llama")
    before = state(u)
    with pytest.raises(KrsError, match="unit 99 is out of range"):
        with patched(u, VALUE_VECTORS.at(0).set(v), VALUE_VECTORS.at(1, units=[99]).set(v)):
            pass
    assert same_state(u, before)


def test_the_users_own_hooks_stay():
    v, u = pair("llama")
    seen = []
    handle = u.model.layers[1].mlp.down_proj.register_forward_pre_hook(lambda *_: seen.append(1))
    with patched(u, MLP_COEF.at(1).set(_record(v, MLP_COEF))):
        _run(u)
    _run(u)
    assert len(seen) == 2
    handle.remove()


def test_tied_weights_stay_tied():
    v, u = pair("llama")
    assert u.lm_head.weight is u.model.embed_tokens.weight
    with patched(u, VALUE_VECTORS.at(0).set(v)):
        _run(u)
    assert u.lm_head.weight is u.model.embed_tokens.weight


def test_gradients_flow_through_patches():
    _, u = pair("llama")
    with patched(u, ATTN_OUT.at(1).map(lambda a: 2 * a)):
        u(input_ids=IDS).logits.sum().backward()
    assert u.model.layers[0].mlp.down_proj.weight.grad.abs().sum() > 0


def test_generate_works_under_patches_and_recorded_positions_are_absolute():
    v, u = pair("llama")
    with record(v, MLP_COEF + ATTN_OUT) as acts:
        said = v.generate(IDS, max_new_tokens=6, do_sample=False, attention_mask=torch.ones_like(IDS), use_cache=True)
    assert acts[MLP_COEF, 0].shape == (2, 1, 24)
    assert acts.offset == said.shape[1] - 2
    acts = _record(v, MLP_COEF + ATTN_OUT)
    with patched(u, (MLP_COEF + ATTN_OUT).at(3).set(acts)):
        cached = u.generate(IDS, max_new_tokens=6, do_sample=False, attention_mask=torch.ones_like(IDS))
    assert cached.shape[1] > IDS.shape[1]
    with patched(u, ATTN_OUT.at(1, positions=2).map(lambda a: a + 1)):
        with_cache = u.generate(IDS, max_new_tokens=5, do_sample=False, attention_mask=torch.ones_like(IDS))
        without = u.generate(
            IDS, max_new_tokens=5, do_sample=False, attention_mask=torch.ones_like(IDS), use_cache=False
        )
    assert torch.equal(with_cache, without)


def test_setting_an_activation_from_a_model_is_explained():
    v, u = pair("llama")
    with pytest.raises(KrsError, match=r"mlp_coef is an activation and depends on the tokens. Record it first"):
        patched(u, MLP_COEF.at(1).set(v)).__enter__()


@pytest.mark.parametrize(
    ("patches", "message"),
    [
        (lambda v: [], "got no patches"),
        (lambda v: [MLP_COEF.at(1)], r"not a patch: add .set"),
        (lambda v: [MLP_COEF.at(4).set(0.0)], "layer 4 is out of range: this model has 4 layers, 0 to 3"),
        (lambda v: [VALUE_VECTORS.at(1).map(lambda w: w[0])], r"must return a tensor of \[24, 16\]"),
        (lambda v: [VALUE_VECTORS.at(1).set(build("llama", hidden_size=32))], "must have the same shape"),
    ],
)
def test_bad_patches_fail_on_entry(patches, message):
    v, u = pair("llama")
    with pytest.raises(KrsError, match=message):
        with patched(u, *patches(v)):
            pass


def test_bad_values_fail_in_the_forward():
    v, u = pair("llama")
    acts = _record(v, MLP_COEF)
    with pytest.raises(KrsError, match=r"recorded \[2, 4, 24\].*called with \[2, 5, 24\].*same batch"):
        with patched(u, MLP_COEF.at(1).set(acts)):
            _run(u, torch.cat([IDS, IDS[:, :1]], dim=1))
    with pytest.raises(KrsError, match="position 9 is out of range"):
        with patched(u, MLP_COEF.at(1, positions=9).map(torch.neg)):
            _run(u)
    with pytest.raises(KrsError, match="does not broadcast"):
        with patched(u, MLP_COEF.at(1).set(torch.zeros(5))):
            _run(u)


def test_a_shorter_forward_takes_the_recordings_beginning():
    v, u = pair("llama")
    acts = _record(v, MLP_COEF)
    with patched(u, MLP_COEF.at(1).set(acts)), record(u, MLP_COEF, layers=[1]) as now:
        _run(u, IDS[:, :3])
    assert torch.equal(now[MLP_COEF, 1], acts[MLP_COEF, 1][:, :3])


def test_a_point_that_never_fires_is_an_error_on_exit(monkeypatch):
    _, u = pair("llama")
    down = u.model.layers[1].mlp.down_proj
    monkeypatch.setattr(
        u.model.layers[1].mlp,
        "forward",
        lambda x: torch.nn.functional.linear(x @ torch.zeros(16, 24), down.weight),
    )
    with pytest.raises(KrsError, match=r"mlp_coef at layer 1 never fired: 'model.layers.1.mlp.down_proj'"):
        with patched(u, MLP_COEF.at(1).set(0.0)):
            _run(u)
    with pytest.raises(KrsError, match="never fired"):
        with record(u, MLP_COEF):
            _run(u)


def test_a_compiled_model_is_refused():
    _, u = pair("llama")
    with pytest.raises(KrsError, match="is compiled"):
        record(torch.compile(u, backend="eager"), MLP_COEF).__enter__()
    u.model.layers[0].compile(backend="eager")
    with pytest.raises(KrsError, match="is compiled"):
        record(u, MLP_COEF).__enter__()


def test_a_packed_weight_is_refused_for_value_vectors_only():
    v, u = pair("llama")
    down = u.model.layers[1].mlp.down_proj
    down.weight = torch.nn.Parameter(down.weight.to(torch.int8), requires_grad=False)
    with pytest.raises(KrsError, match=r"packed .*load both models unquantised"):
        with patched(u, VALUE_VECTORS.at(1).set(v)):
            pass


def test_patches_take_the_layers_own_dtype():
    v, u = pair("llama")
    acts = _record(v, MLP_COEF)
    u.to(torch.bfloat16)
    with patched(u, MLP_COEF.at(1).set(acts), VALUE_VECTORS.at(1).set(v)):
        assert _run(u).dtype == torch.bfloat16


def test_no_mask_goes_with_all_parameters_of_a_layer():
    v, u = pair("llama")
    patch = patched(u, WEIGHTS.at(1).set(v, where=torch.ones(1, 3, dtype=torch.bool)))
    with pytest.raises(KrsError, match="a weight acts at every position, so where= does not go with it"), patch:
        pass
