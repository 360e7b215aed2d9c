"""TransformerLens' names as sites: its own caches hold the values that krs records under them, in its shapes."""

import copy

import pytest
import torch

import krs
from krs import KrsError, windows
from krs.hooks import patched, record, self_check, setting, to_transformer_lens
from krs.hooks.lens_names import HOOKS, point_name
from tests.hooks.test_bridges import _heads, bridge
from tests.noise import assert_same, float64_throughout
from tests.tiny import FAMILIES, build, exact_pair

IDS = torch.tensor([[3, 5, 8, 20]])
LENS = ["llama", "gpt2", "gpt_neox", "gemma2", "olmo2", "bloom", "opt", "qwen3"]


def _site(name):
    return f"blocks.{{l}}.{name}"


@pytest.mark.parametrize("name", LENS)
def test_transformer_lens_caches_the_same_under_its_names(name):
    model = build(name, **_heads(name)).double()
    wrapped = bridge(copy.deepcopy(model))
    with float64_throughout(), torch.no_grad():
        _, cache = wrapped.run_with_cache(IDS)
        for hook in HOOKS:
            with record(model, _site(hook), layers=[2]) as acts:
                model(input_ids=IDS)
            ((_, value),) = to_transformer_lens(acts).items()
            assert_same(value.reshape(-1), cache[f"blocks.2.{hook}"].reshape(-1))
            if "." in hook and "mlp" not in hook and not hook.startswith(("attn.o.", "attn.q", "attn.k", "attn.v")):
                assert value.shape == cache[f"blocks.2.{hook}"].shape


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox"])
def test_names_act_in_bridges_too(name):
    wrapped = bridge(build(name, **_heads(name)).double())
    points = "+".join(_site(hook) for hook in ("hook_resid_pre", "attn.hook_q", "attn.hook_z", "mlp.hook_post"))
    with float64_throughout(), torch.no_grad():
        plain, cache = wrapped.run_with_cache(IDS)
        with record(wrapped, points, layers=[1, 2]) as acts:
            wrapped(IDS)
        for hook, value in to_transformer_lens(acts).items():
            assert_same(value, cache[hook])
        with patched(wrapped, setting(_site("attn.hook_z")).at(1).map(lambda z: 0 * z)):
            assert (wrapped(IDS) - plain).abs().max() > 1e-3


def test_settings_of_a_sweep_take_names():
    v, u = exact_pair("gpt2")
    options = {"windows": windows.of([[1, 2]]), "n_tokens": 3, "progress": False}
    ours = krs.sweep(v, u, [[5, 9]], settings=["resid+head_out.heads(1)", "attn_out", "mlp_added"], **options)
    named = ["blocks.{l}.hook_resid_post+head_out.heads(1)", _site("attn.o.hook_out"), "hook_mlp_out"]
    found = krs.sweep(v, u, [[5, 9]], settings=named, **options)
    assert list(found.krs.columns) == list(ours.krs.columns)
    assert_same(found.krs.to_numpy(), ours.krs.to_numpy())


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("blocks.{l}.hook_resid_mid", "is no point of krs: 'resid_pre' and 'resid' are before and behind it"),
        ("blocks.{l}.attn.hook_pattern", "'head_out' is what follows"),
        ("hook_nothing", "hook points that are points: attn.hook_k, "),
        ("blocks.3.hook_resid_post", r"names layer 3, .*write 'blocks.\{l\}.hook_resid_post'.*\.at\(3\)"),
    ],
)
def test_other_names_are_refused_with_the_nearest(name, reason):
    with pytest.raises(KrsError, match=reason):
        setting(name)


def test_points_without_a_name_are_said():
    model = build("llama")
    with record(model, krs.MLP_COEF.units(3), layers=[1]) as acts, torch.no_grad():
        model(IDS)
    with pytest.raises(KrsError, match=r"no hook point for mlp_coef.units\(3\)"):
        to_transformer_lens(acts)


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_what_attention_and_mlp_add_is_the_difference_that_they_make(name):
    model = build(name).double()
    if name == "granite":
        with pytest.raises(KrsError, match=r"multiplies each branch by 0.5.*use attn_out"):
            self_check(model, "attn_added")
        return
    added = setting("hook_attn_out+hook_mlp_out+resid_pre+resid")
    with float64_throughout(), torch.no_grad(), record(model, added, layers=[2]) as acts:
        model(IDS)
    attention, mlp, before, after = (acts[p, 2] for p in added.points)
    assert_same(before + attention + mlp, after)


def test_a_name_is_a_point():
    assert point_name("blocks.{layer}.mlp.hook_post") == point_name("mlp.hook_post") == "mlp_coef"
