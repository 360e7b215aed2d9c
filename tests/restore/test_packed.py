"""Quantised models: activations are restored in them as in any other; weights where they can be unpacked."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import krs
from krs import KrsError
from krs.hooks.adapters import merged
from krs.hooks.weights import read_weight
from tests.adapters import adapted
from tests.packed import Packed
from tests.tiny import pair, same_state, state

PROMPTS = [[5, 9, 11], [7, 3, 22, 8]]
ACTIVATIONS = ["mlp_coef", "attn_out", "mlp_coef+attn_out"]


def _quantised(model, rounds=False):
    made = copy.deepcopy(model)
    for layer in made.model.layers:
        for block in (layer.mlp, layer.self_attn):
            for name, module in list(block.named_children()):
                if isinstance(module, nn.Linear):
                    setattr(block, name, Packed(module, rounds).eval())
    return made


def _unpacked(model):
    made = copy.deepcopy(model)
    for layer in made.model.layers:
        for block in (layer.mlp, layer.self_attn):
            for name, module in list(block.named_children()):
                if isinstance(module, Packed):
                    linear = nn.Linear(module.in_features, module.out_features, bias=False).eval()
                    linear.weight = nn.Parameter(module.unpacked())
                    setattr(block, name, linear)
    return made.to(model.dtype)


def _sweep(v, u, engine, settings):
    return krs.sweep(
        v, u, PROMPTS, settings=settings, windows=3, n_tokens=3, engine=engine, progress=False
    ).krs.to_numpy()


@pytest.mark.parametrize("engine", ["plain", "wavefront"])
def test_a_quantised_pair_gives_the_sweep_of_the_unpacked_one(engine):
    v, u = (_quantised(m.double()) for m in pair("llama", tie_word_embeddings=False))
    before = state(u)
    settings = [*ACTIVATIONS, "value_vectors", "mlp_coef+value_vectors"]
    expected = _sweep(_unpacked(v), _unpacked(u), "plain", settings)
    np.testing.assert_allclose(_sweep(v, u, engine, settings), expected, rtol=0, atol=1e-9)
    assert same_state(u, before)


@pytest.mark.parametrize("engine", ["plain", "wavefront"])
def test_where_activations_are_rounded_too_only_they_are_restored(engine):
    v, u = (_quantised(m, rounds=True) for m in pair("llama", tie_word_embeddings=False))
    assert np.isfinite(_sweep(v, u, engine, ACTIVATIONS)).all()
    with pytest.raises(KrsError, match=r"rounds activations.*leave the weight points out"):
        _sweep(v, u, engine, ["value_vectors"])
    with pytest.raises(KrsError, match="load both models unquantised"):
        krs.metrics.drift(v, u)


def test_an_adapter_on_packed_weights_acts_and_is_not_merged():
    v, _ = pair("llama", tie_word_embeddings=False)
    u = adapted(v, "lora", target_modules=["down_proj"])
    for layer in u.base_model.model.model.layers:
        layer.mlp.down_proj.base_layer = Packed(layer.mlp.down_proj.base_layer).eval()
    with pytest.raises(KrsError, match=r"packed \(quantised\), so its adapter cannot be merged exactly"):
        merged(u)
    layer = u.base_model.model.model.layers[1].mlp.down_proj
    wanted = layer.base_layer.unpacked() + layer.get_delta_weight("default")
    torch.testing.assert_close(read_weight(layer, "it"), wanted.T)
