"""Models whose layers differ, and models whose type is unknown: alternatives of a family, `family=` of a call."""

import functools

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import krs
from krs import ATTN_OUT, EXPERTS, KEYS, MLP_COEF, NORMS, RESID, VALUE_VECTORS, KrsError, windows
from krs.hooks import Family, OneOf, anatomy, families, patched, record, register_family, self_check
from tests import by_hand
from tests.noise import assert_same
from tests.tiny import _BASE, _LLAMA, exact_pair, perturbed

PROMPTS = [[5, 9, 11], [7, 3, 22, 8, 40, 2], [13]]


@functools.cache
def _mixed():
    """Qwen3-MoE with dense layers 0 and 2."""
    options = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8, "mlp_only_layers": [0, 2]}
    torch.manual_seed(0)
    config = AutoConfig.for_model("qwen3_moe", **(_BASE | _LLAMA | {"head_dim": 8} | options))
    model = perturbed(
        AutoModelForCausalLM.from_config(config, experts_implementation="eager").eval(), scale=0.2
    ).double()
    return model, perturbed(model)


def _sweep(v, u, engine="auto", **options):
    return krs.sweep(v, u, PROMPTS, n_tokens=4, progress=False, engine=engine, **options)


def test_dense_layers_of_a_mixture_of_experts_by_hand_and_through_both_engines():
    v, u = _mixed()
    settings, listed = [MLP_COEF, VALUE_VECTORS, MLP_COEF + ATTN_OUT, KEYS], [[0], [2], [0, 2]]
    asked = {"settings": settings, "windows": windows.of(listed)}
    fast, plain = (_sweep(v, u, e, **asked) for e in ("auto", "plain"))
    assert_same(fast.krs.to_numpy(), plain.krs.to_numpy())
    expected = [_coefficients_by_hand(v, u, layer) for layer in (0, 2)]
    np.testing.assert_allclose(plain.krs.to_numpy()[:2, 0], expected, rtol=0, atol=1e-9)


def _coefficients_by_hand(v, u, layer):
    loss, base = 0.0, 0.0
    for prompt in PROMPTS:
        answer = by_hand.greedy(v, prompt, 4)
        ids = torch.tensor([prompt + answer])
        scored = slice(len(prompt) - 1, len(prompt) + len(answer) - 1)
        kept = []
        theirs, ours = (m.model.layers[layer].mlp.down_proj for m in (v, u))
        with torch.no_grad():
            hook = theirs.register_forward_pre_hook(lambda _, args, kept=kept: kept.append(args[0].clone()))
            target = v(ids).logits[0, scored]
            hook.remove()
            base += (u(ids).logits[0, scored] - target).pow(2).mean(-1).sum().item()
            hook = ours.register_forward_pre_hook(lambda *_, kept=kept: (kept[0],))
            loss += (u(ids).logits[0, scored] - target).pow(2).mean(-1).sum().item()
            hook.remove()
    return 1 - loss / base


def test_a_layer_without_a_point_is_named_with_those_that_have_it():
    v, u = _mixed()
    with pytest.raises(KrsError, match=r"layer 1 of this Qwen3MoeForCausalLM has no mlp_out_proj, only 0, 2 have"):
        _sweep(v, u, settings=[MLP_COEF], windows=windows.each())
    with pytest.raises(KrsError, match="layer 0 of this Qwen3MoeForCausalLM is no mixture of experts"):
        _sweep(v, u, settings=[EXPERTS], windows=windows.each())
    assert self_check(v, MLP_COEF, layers=[0, 2]).n_layers == 2
    result = _sweep(v, u, settings=[ATTN_OUT, RESID, NORMS], windows=windows.each())
    assert np.isfinite(result.krs.to_numpy()).all()


@pytest.fixture
def registry(monkeypatch):
    monkeypatch.setattr(families, "BY_TYPE", families.BY_TYPE.copy())


class _Around(torch.nn.Module):
    def __init__(self, feed):
        super().__init__()
        self.feed = feed

    def forward(self, states):
        return self.feed(states)


def test_alternative_paths_by_layer(registry):
    """Layers 2 and 3 have their MLP inside another module: the same scores as with one name for all."""
    v, u = exact_pair("llama")
    asked = {"settings": [MLP_COEF, ATTN_OUT, VALUE_VECTORS, KEYS], "windows": windows.of([[1, 2], [3]])}
    usual = _sweep(v, u, **asked).krs.to_numpy()
    for model in (v, u):
        model.config.model_type = "two_kinds"
        for layer in model.model.layers[2:]:
            layer.mlp = _Around(layer.mlp).eval()
    roles = {
        "mlp_out_proj": OneOf("mlp.down_proj", "mlp.feed.down_proj"),
        "mlp_in": OneOf(("mlp.gate_proj", "mlp.up_proj"), ("mlp.feed.gate_proj", "mlp.feed.up_proj")),
        "attn_out_proj": "self_attn.o_proj",
    }
    register_family(Family("two kinds", ("two_kinds",), "model.layers", roles, "model.norm"))
    assert anatomy(u).path(MLP_COEF, 1) == "model.layers.1.mlp.down_proj"
    assert anatomy(u).path(MLP_COEF, 3) == "model.layers.3.mlp.feed.down_proj"
    for engine in ("wavefront", "plain"):
        assert_same(_sweep(v, u, engine, **asked).krs.to_numpy(), usual)


def test_a_family_for_one_call():
    v, u = exact_pair("llama")
    asked = {"settings": [MLP_COEF, VALUE_VECTORS], "windows": windows.of([[1, 2]])}
    usual = _sweep(v, u, **asked).krs
    for model in (v, u):
        model.config.model_type = "llamb"
    ids = torch.tensor(PROMPTS[:1])
    with pytest.raises(KrsError, match=r"unknown model family 'llamb'.*family='llama'"):
        _sweep(v, u, **asked)
    for engine in ("wavefront", "plain"):
        assert _sweep(v, u, engine, family="llama", **asked).krs.equals(usual) or engine == "plain"
    assert krs.patch_sweep(u, v, PROMPTS, n_tokens=4, progress=False, family="llama", **asked).krs.equals(usual)
    with record(v, MLP_COEF, layers=[1], family=families.family_of("llama")) as acts:
        v(ids)
    with patched(u, MLP_COEF.at(1).set(acts), VALUE_VECTORS.at(1).set(v), family="llama"):
        u(ids)
    restored = krs.generate(v, u, PROMPTS, restore=RESID.at(3), n_tokens=3, progress=False, family="llama")
    assert len(restored) == 3
    assert self_check(v, family="llama").noop < 1e-9
    assert anatomy(v, family="mistral").family.name == "Llama"
    with pytest.raises(KrsError, match="unknown model family 'llamb'"):
        anatomy(v)
    with pytest.raises(KrsError, match="unknown model family 'nothing'"):
        _sweep(v, u, family="nothing", **asked)
