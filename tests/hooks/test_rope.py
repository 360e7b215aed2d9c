"""Rotary factors that follow the longest sequence: known, started afresh, and left as they were."""

import pytest
import torch

from krs.hooks.context import plain_calls
from krs.hooks.rope import following, start_afresh
from tests.tiny import build

DYNAMIC = {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}}
LONG = {
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 4,
        "long_factor": [4.0, 8.0, 16.0, 32.0],
        "original_max_position_embeddings": 8,
    },
    "original_max_position_embeddings": 8,
}
BY_LAYER = {
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        "full_attention": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0},
    },
}


def _logits(model, length):
    with torch.no_grad():
        return model(torch.arange(2, 2 + length)[None]).logits


@pytest.mark.parametrize(
    ("name", "options", "follows"),
    [
        ("llama", {}, 0),
        ("llama", DYNAMIC, 1),
        ("phi3", LONG, 1),
        ("gemma3", BY_LAYER, 1),
        ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}}, 0),
    ],
)
def test_they_are_known_by_their_type(name, options, follows):
    assert len(following(build(name, **options))) == follows


@pytest.mark.parametrize(("name", "options"), [("llama", DYNAMIC), ("phi3", LONG), ("gemma3", BY_LAYER)])
def test_a_fresh_start_gives_what_a_model_just_loaded_gives(name, options):
    model = build(name, **options, max_position_embeddings=16)
    expected = _logits(model, 18)
    _logits(model, 40)
    start_afresh(model)
    assert torch.equal(_logits(model, 18), expected)


def test_a_call_leaves_the_factors_as_they_were():
    model = build("llama", **DYNAMIC, max_position_embeddings=16)
    _logits(model, 40)
    grown = _logits(model, 18)
    with plain_calls(model):
        assert not torch.equal(_logits(model, 18), grown)
    assert torch.equal(_logits(model, 18), grown)
