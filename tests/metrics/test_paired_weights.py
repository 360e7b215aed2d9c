import gc

import pytest
import torch

from krs import KrsError
from krs.metrics.paired_weights import paired_weights
from tests.packed import Packed
from tests.tiny import pair


def _packed(model):
    for layer in model.model.layers:
        layer.mlp.down_proj = Packed(layer.mlp.down_proj).eval()
    return model


def test_what_is_unpacked_on_the_way_is_tied_to_nothing():
    v, u = map(_packed, pair("llama", num_hidden_layers=8, tie_word_embeddings=True))
    gc.disable()  # an unpacked weight that is gone gives its id to the next one
    try:
        tied = {found.full: found.tied_to for found in paired_weights(v, u)}
    finally:
        gc.enable()
    assert {name: to for name, to in tied.items() if name != to} == {"lm_head.weight": "model.embed_tokens.weight"}


def test_a_missing_bias_is_zero_and_another_shape_is_refused():
    v, u = pair("llama")
    u.model.layers[0].mlp.up_proj.bias = torch.nn.Parameter(torch.ones(u.config.intermediate_size))
    found = next(f for f in paired_weights(v, u) if f.full == "model.layers.0.mlp.up_proj.bias")
    assert not found.vanilla.any()
    assert found.unlearned.all()
    u.model.layers[1].mlp.up_proj.weight = torch.nn.Parameter(torch.ones(4, 4))
    with pytest.raises(KrsError, match=r"'model.layers.1.mlp.up_proj.weight' is not a weight of both models"):
        list(paired_weights(v, u))
