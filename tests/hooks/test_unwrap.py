"""TransformerLens bridges and PEFT models, the real libraries, on tiny models."""

import copy
import warnings

import numpy as np
import pytest
import torch

import krs
from krs import ATTN_OUT, MLP_COEF, VALUE_VECTORS, KrsError
from krs.hooks import patched, record, self_check
from tests.noise import assert_same, float64_throughout
from tests.tiny import build, exact_pair, perturbed, same_state, state

PROMPTS = [[5, 9, 11], [7, 3, 22, 8]]


def _sweep(v, u):
    return krs.sweep(v, u, PROMPTS, windows=3, n_tokens=4, progress=False).krs.to_numpy()


@pytest.fixture(scope="module")
def bridge():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformer_lens.model_bridge.sources import build_bridge_from_module

    def wrap(model):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return build_bridge_from_module(model, type(model).__name__, hf_config=model.config).eval()

    return wrap


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox"])
@float64_throughout()
def test_a_transformer_lens_bridge_gives_the_same_sweep(name, bridge):
    v, u = exact_pair(name, **({"num_key_value_heads": 2} if name == "gpt_neox" else {}))
    expected = _sweep(v, u)
    wrapped = bridge(copy.deepcopy(v)), bridge(copy.deepcopy(u))
    before = state(wrapped[1].original_model)
    assert_same(_sweep(*wrapped), expected)
    assert same_state(wrapped[1].original_model, before)


def test_recordings_agree_with_the_bridges_own_hooks(bridge):
    model = bridge(build("llama").double())
    ids = torch.tensor([[3, 5, 8]])
    with record(model, MLP_COEF + ATTN_OUT + VALUE_VECTORS, layers=[2]) as acts, torch.no_grad():
        _, cache = model.run_with_cache(ids)
    assert_same(acts[MLP_COEF, 2], cache["blocks.2.mlp.hook_post"])
    assert_same(acts[ATTN_OUT, 2], cache["blocks.2.attn.hook_out"])
    assert_same(acts[VALUE_VECTORS, 2], model.blocks[2].mlp.W_out)


def test_patches_act_when_the_bridge_itself_is_called(bridge):
    model = bridge(build("llama"))
    ids = torch.tensor([[3, 5, 8]])
    with torch.no_grad():
        plain = model(ids)
        with patched(model, ATTN_OUT.at(1).map(lambda a: 0 * a)):
            changed = model(ids)
        again = model(ids)
    assert (plain - changed).abs().max() > 1e-3
    assert torch.equal(plain, again)


def test_compatibility_mode_is_refused(bridge):
    model = bridge(build("llama"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.enable_compatibility_mode()
    with pytest.raises(KrsError, match=r"compatibility mode.*without enable_compatibility_mode\(\)"):
        self_check(model)


def _lora(model, seed=3):
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, lora_alpha=4, target_modules=["down_proj", "q_proj", "o_proj"], init_lora_weights=False)
    torch.manual_seed(seed)
    return get_peft_model(model, config).to(model.dtype).eval()


def test_a_lora_model_gives_the_sweep_of_its_merged_self():
    v = build("llama", tie_word_embeddings=False).double()
    u = _lora(copy.deepcopy(v))
    merged = copy.deepcopy(u).merge_and_unload().eval()
    before = state(u)
    flags = {name: p.requires_grad for name, p in u.named_parameters()}
    assert_same(_sweep(v, u), _sweep(v, merged))
    assert same_state(u, before)
    assert flags == {name: p.requires_grad for name, p in u.named_parameters()}


def test_value_vectors_of_a_lora_layer_are_the_sum_and_are_replaced_whole():
    v = build("llama", tie_word_embeddings=False).double()
    u = _lora(copy.deepcopy(v))
    merged = copy.deepcopy(u).merge_and_unload()
    with record(u, VALUE_VECTORS, layers=[1]) as acts:
        pass
    assert_same(acts[VALUE_VECTORS, 1], merged.model.layers[1].mlp.down_proj.weight.T)
    ids = torch.tensor([[3, 5, 8]])
    merged.model.layers[1].mlp.down_proj.load_state_dict(v.model.layers[1].mlp.down_proj.state_dict())
    with patched(u, VALUE_VECTORS.at(1).set(v)), torch.no_grad():
        assert_same(u(input_ids=ids).logits, merged(input_ids=ids).logits)


def test_a_lora_model_over_the_vanilla_model_itself_is_refused():
    v = build("llama", tie_word_embeddings=False)
    with pytest.raises(KrsError, match="the same object|share the storage"):
        krs.sweep(v, _lora(v), PROMPTS, progress=False)


def test_the_lora_of_a_moved_base_is_no_surprise():
    v = build("llama", tie_word_embeddings=False)
    assert np.isfinite(_sweep(v, _lora(perturbed(v)))).all()


def _prompt_learning(name):
    import peft

    return {
        "prompt tuning": (peft.PromptTuningConfig, {"num_virtual_tokens": 3}),
        "prefix tuning": (peft.PrefixTuningConfig, {"num_virtual_tokens": 3}),
        "p-tuning": (peft.PromptEncoderConfig, {"num_virtual_tokens": 3, "encoder_hidden_size": 8}),
        "multitask": (peft.MultitaskPromptTuningConfig, {"num_virtual_tokens": 3, "num_tasks": 2}),
        "cpt": (peft.CPTConfig, {"cpt_token_ids": [3, 4]}),
        "adaption prompt": (peft.AdaptionPromptConfig, {"adapter_len": 2, "adapter_layers": 2}),
        "poly": (peft.PolyConfig, {"target_modules": ["down_proj"], "n_tasks": 2, "n_skills": 2}),
        "activated lora": (peft.LoraConfig, {"target_modules": ["down_proj"], "alora_invocation_tokens": [7]}),
    }[name]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("prompt tuning", "virtual tokens"),
        ("prefix tuning", "virtual tokens"),
        ("p-tuning", "virtual tokens"),
        ("multitask", "virtual tokens"),
        ("cpt", "virtual tokens"),
        ("adaption prompt", "around whole blocks"),
        ("poly", "mixed anew"),
        ("activated lora", "behind certain tokens only"),
    ],
)
def test_what_a_peft_model_does_outside_its_modules_is_refused(name, reason):
    from peft import get_peft_model

    config, settings = _prompt_learning(name)
    v = build("llama", tie_word_embeddings=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        u = get_peft_model(copy.deepcopy(v), config(task_type="CAUSAL_LM", **settings)).eval()
    with pytest.raises(KrsError, match=rf"unlearned is a PEFT model with .*{reason}.*can be merged \(LoRA"):
        krs.sweep(v, u, PROMPTS, progress=False)
    with pytest.raises(KrsError, match=reason):
        krs.metrics.drift(v, u)


def test_a_model_with_virtual_tokens_switched_off_is_its_base():
    from peft import PromptTuningConfig, get_peft_model

    v = build("llama", tie_word_embeddings=False)
    u = get_peft_model(perturbed(v), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)).eval()
    with u.disable_adapter():
        assert krs.hooks.unwrap(u) is u.base_model


def test_mixed_adapters_and_adapters_that_transformers_put_there():
    from peft import LoHaConfig, LoraConfig, PeftMixedModel

    v = build("llama", tie_word_embeddings=False).double()
    mixed = PeftMixedModel(copy.deepcopy(v), LoraConfig(r=2, target_modules=["down_proj"], init_lora_weights=False))
    mixed.add_adapter("other", LoHaConfig(r=2, target_modules=["down_proj", "q_proj"], init_weights=False))
    mixed.set_adapter(["default", "other"])
    merged = copy.deepcopy(mixed).merge_and_unload().eval()
    np.testing.assert_allclose(_sweep(v, mixed.eval()), _sweep(v, merged), rtol=0, atol=1e-9)

    inside = copy.deepcopy(v)
    inside.add_adapter(LoraConfig(r=2, target_modules=["down_proj", "o_proj"], init_lora_weights=False))
    inside.eval()
    with record(inside, VALUE_VECTORS, layers=[1]) as acts:
        pass
    down = inside.model.layers[1].mlp.down_proj
    wanted = down.base_layer.weight + down.get_delta_weight("default")
    assert torch.equal(acts[VALUE_VECTORS, 1], wanted.T)
    assert np.isfinite(_sweep(v, inside)).all()
