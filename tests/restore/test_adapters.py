"""An adapted model, unmerged, gives the sweep of its merged self, with either engine."""

import copy

import numpy as np
import pytest

import krs
from krs import KrsError
from tests.adapters import adapted, merged_by_peft
from tests.tiny import build, same_state, state

PROMPTS = [[5, 9, 11], [7, 3, 22, 8]]
SETTINGS = ["mlp_coef", "value_vectors", "mlp_coef+value_vectors+attn_out"]
SWEPT = [("llama-bias", k) for k in ("lora", "dora", "lora-bias", "ia3", "ia3-output", "boft", "beft")]
SWEPT += [("gpt2", k) for k in ("dora", "ia3")]


def _sweep(v, u, engine):
    return krs.sweep(
        v, u, PROMPTS, settings=SETTINGS, windows=3, n_tokens=3, engine=engine, progress=False
    ).krs.to_numpy()


@pytest.mark.parametrize(("base", "kind"), SWEPT)
def test_both_engines_agree_on_an_adapter_and_with_its_merged_self(base, kind):
    v = build(base, tie_word_embeddings=False).double()
    u = adapted(v, kind)
    before = state(u)
    expected = _sweep(v, merged_by_peft(u), "plain")
    for engine in ("plain", "wavefront"):
        np.testing.assert_allclose(_sweep(v, u, engine), expected, rtol=0, atol=1e-9)
        assert same_state(u, before)


def test_an_adapted_vanilla_model_gives_its_merged_value_vectors():
    base = build("llama-bias", tie_word_embeddings=False).double()
    v, u = adapted(base, "dora"), adapted(base, "ia3", seed=4)
    merged = merged_by_peft(v), merged_by_peft(u)
    expected = _sweep(*merged, "plain")
    for engine in ("plain", "wavefront"):
        np.testing.assert_allclose(_sweep(v, u, engine), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    "settings",
    [
        {"modules_to_save": ["lm_head"]},
        {"modules_to_save": ["embed_tokens"]},
        {"trainable_token_indices": [5, 9]},
        {"target_modules": ["embed_tokens", "lm_head", "down_proj"]},
    ],
)
def test_adapters_on_the_embedding_and_the_head(settings):
    v = build("llama", tie_word_embeddings=False).double()
    u = adapted(v, "lora", **settings)
    expected = _sweep(v, merged_by_peft(u), "plain")
    for engine in ("plain", "wavefront"):
        np.testing.assert_allclose(_sweep(v, u, engine), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("engine", ["auto", "plain"])
def test_whole_layers_go_between_models_of_the_same_adapters_and_scale_only(engine):
    """Said before any model runs: one adapted and one plain, and adapters of one shape that act with another scale."""
    base = build("llama").double()
    v, u = adapted(base, "lora"), adapted(base, "lora", seed=4)
    ask = {"settings": "weights", "windows": 1, "n_tokens": 3, "progress": False, "engine": engine}
    found = krs.sweep(v, u, [[5, 9, 11], [7, 3]], **ask)
    merged = krs.sweep(merged_by_peft(v), merged_by_peft(u), [[5, 9, 11], [7, 3]], **ask)
    np.testing.assert_allclose(found.krs, merged.krs, rtol=0, atol=1e-9)
    for module in u.modules():
        if hasattr(module, "set_scale"):
            module.set_scale("default", 0.5)
    ran = []
    for model in (v, u):
        model.get_base_model().register_forward_pre_hook(lambda *_: ran.append(1))
    for other in (u, copy.deepcopy(base)):
        with pytest.raises(KrsError, match=r"only where both have the same parameters: merge adapters first"):
            krs.sweep(v, other, [[5, 9, 11], [7, 3]], **ask)
    assert not ran
