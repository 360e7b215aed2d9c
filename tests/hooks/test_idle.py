"""Hooks that libraries leave on a model do not cost the fast engine; anybody else's do."""

import copy
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import krs
from krs import windows
from krs.hooks.idle import acting_hooks
from tests.tiny import pair

PROMPTS = [[5, 9, 11], [7, 3, 22, 8]]


def _sweep(v, u):
    return krs.sweep(v, u, PROMPTS, windows=windows.of([[1, 2]]), n_tokens=3, progress=False)


def _after_hidden_states(model):
    model(torch.tensor([[3, 5]]), output_hidden_states=True)


def _after_checkpointed_training(model):
    model.enable_input_require_grads()


@pytest.mark.parametrize("leave", [_after_hidden_states, _after_checkpointed_training])
def test_idle_hooks_of_transformers_leave_the_fast_engine(leave):
    v, u = pair("llama")
    expected = _sweep(v, u)
    for model in (v, u):
        leave(model)
        assert any(m._forward_hooks for m in model.modules())
    found = _sweep(v, u)
    assert found.provenance["engine"] == expected.provenance["engine"] == "wavefront"
    np.testing.assert_array_equal(found.krs, expected.krs)


def test_a_bridge_takes_the_fast_engine_until_a_hook_is_put_on_it():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformer_lens.model_bridge.sources import build_bridge_from_module

        pairs = pair("llama")
        expected = _sweep(*pairs)
        v, u = (build_bridge_from_module(copy.deepcopy(m), type(m).__name__, hf_config=m.config) for m in pairs)
    found = _sweep(v.eval(), u.eval())
    assert found.provenance["engine"] == "wavefront"
    np.testing.assert_allclose(found.krs, expected.krs, rtol=0, atol=1e-4)
    u.add_hook("blocks.1.hook_out", lambda value, hook: 0.5 * value)
    found = _sweep(v, u)
    assert found.provenance["engine"] == "plain"
    assert "there are hooks on 'model.layers.1.hook_out'" in found.provenance["engine_note"]


def test_a_callers_own_hook_is_seen_wherever_it_is():
    def hook(module, args, output):
        return None

    model = nn.Sequential(nn.Linear(2, 2))
    handle = model[0].register_forward_hook(hook)
    assert list(acting_hooks(model)) == ["'0'"]
    handle.remove()
    handle = model.register_forward_pre_hook(lambda module, args: None)
    assert list(acting_hooks(model)) == ["the model"]
    handle.remove()
    handle = torch.nn.modules.module.register_module_forward_hook(hook)
    try:
        assert list(acting_hooks(model)) == ["every module (register_module_forward_hook)"]
    finally:
        handle.remove()
    assert not list(acting_hooks(model))
