"""Mixtures of experts: routers, experts and what a mixture puts out, by hand and through both engines."""

import functools

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import krs
from krs import ATTN_OUT, EXPERTS, MOE_OUT, ROUTER, KrsError, windows
from tests import by_hand
from tests.noise import assert_same
from tests.tiny import _BASE, _LLAMA, exact_pair, pair, perturbed, same_state, state

PROMPTS = [[5, 9, 11], [7, 3, 22, 8, 40, 2], [13]]
_FEW = {"num_experts": 4, "num_experts_per_tok": 2}
MIXTURES = {
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "olmoe": _FEW,
    "qwen2_moe": _FEW | {"moe_intermediate_size": 8, "shared_expert_intermediate_size": 8},
    "qwen3_moe": _FEW | {"moe_intermediate_size": 8, "head_dim": 8},
}


@functools.cache
def _pair(name):
    torch.manual_seed(0)
    config = AutoConfig.for_model(name, **(_BASE | _LLAMA | {"num_hidden_layers": 3} | MIXTURES[name]))
    plain = AutoModelForCausalLM.from_config(config, experts_implementation="eager").eval()
    model = perturbed(plain, scale=0.2).double()
    return model, perturbed(model)


def _sweep(v, u, engine="auto", **options):
    return krs.sweep(v, u, PROMPTS, n_tokens=4, progress=False, engine=engine, **options)


@pytest.mark.parametrize("name", sorted(MIXTURES))
def test_points_of_experts_by_hand_and_through_both_engines(name):
    v, u = _pair(name)
    before = [state(m) for m in (v, u)]
    settings = [MOE_OUT, EXPERTS, ROUTER, MOE_OUT + ATTN_OUT, EXPERTS + ROUTER]
    fast, plain = (
        _sweep(v, u, e, settings=settings, windows=windows.of([[1], [1, 2]])) for e in ("wavefront", "plain")
    )
    assert_same(fast.krs.to_numpy(), plain.krs.to_numpy())
    np.testing.assert_allclose(plain.krs.to_numpy()[0, :3], _by_hand(v, u), rtol=0, atol=1e-9)
    assert all(same_state(m, was) for m, was in zip((v, u), before, strict=True))


def _by_hand(v, u):
    """KRS with the mixture's output, its experts, and its router put into layer 1."""
    loss, base = np.zeros(3), 0.0
    ours, theirs = u.model.layers[1].mlp, v.model.layers[1].mlp
    for prompt in PROMPTS:
        answer = by_hand.greedy(v, prompt, 4)
        ids = torch.tensor([prompt + answer])
        scored = slice(len(prompt) - 1, len(prompt) + len(answer) - 1)
        kept = []
        with torch.no_grad():
            hook = theirs.register_forward_hook(lambda _, __, out, kept=kept: kept.append(out))
            target = v(ids).logits[0, scored]
            hook.remove()
            hook = ours.register_forward_hook(lambda *_, kept=kept: kept[0])
            runs = [u(ids).logits[0, scored]]
            hook.remove()
            for part in ("experts", "gate"):
                own = ours._modules[part]
                ours._modules[part] = theirs._modules[part]
                runs.append(u(ids).logits[0, scored])
                ours._modules[part] = own
            base += (u(ids).logits[0, scored] - target).pow(2).mean(-1).sum().item()
        loss += [(run - target).pow(2).mean(-1).sum().item() for run in runs]
    return 1 - loss / base


def test_where_there_are_no_experts():
    v, u = exact_pair("llama")
    for point in (MOE_OUT, EXPERTS, ROUTER):
        with pytest.raises(KrsError, match="Llama models are no mixtures of experts"):
            _sweep(v, u, settings=[point])


@pytest.mark.parametrize("name", ["moe", "olmoe", "phimoe"])
def test_a_configuration_that_asks_for_router_logits_changes_nothing(name, tmp_path):
    """As models have it that were trained with a loss on them; transformers cannot make it beside a cache."""
    v, u = pair(name)
    ask = {"settings": "attn_out", "windows": 1, "n_tokens": 4, "progress": False, "checkpoint": tmp_path / "c.krs"}
    expected = krs.sweep(v, u, PROMPTS, **ask)
    for model in (v, u):
        model.config.output_router_logits = True
    assert krs.sweep(v, u, PROMPTS, **ask).krs.equals(expected.krs)
    found = krs.sweep(v, u, PROMPTS, **(ask | {"checkpoint": None}))
    assert found.answers == expected.answers
    assert found.provenance["engine"] == "wavefront"
    np.testing.assert_allclose(found.krs, expected.krs, rtol=0, atol=1e-5)
    assert u.config.output_router_logits
