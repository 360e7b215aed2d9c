"""The weight of a module is the linear map that it applies, whatever is around it or in place of it."""

import copy

import pytest
import torch
from torch import nn

from krs import MLP_COEF, VALUE_VECTORS, KrsError
from krs.hooks import patched, record
from krs.hooks.linear import LinearMap, widths
from krs.hooks.weights import linear_map, read_weight, replace_weight, write_weight
from tests.adapters import KINDS, ON_CONV1D, adapted, disturbed, merged_by_peft
from tests.packed import Packed
from tests.tiny import build, same_state, state

CASES = [("llama-bias", kind) for kind in KINDS] + [("gpt2", kind) for kind in ON_CONV1D]
IN_FP32 = {"c3a": 1e-6, "deft": 1e-5}
"""Kinds that compute in fp32 whatever the model's dtype, and how far off that is."""


def _projection(model):
    return model.get_submodule(
        "base_model.model.transformer.h.1.mlp.c_proj"
        if model.config.model_type == "gpt2"
        else "base_model.model.model.layers.1.mlp.down_proj"
    )


def _states(module):
    return torch.randn(2, 3, widths(module)[0], generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning")
@pytest.mark.parametrize(("base", "kind"), CASES)
def test_the_weight_of_an_adapted_module_is_the_merged_one_and_is_replaced_whole(base, kind):
    model = adapted(build(base, tie_word_embeddings=False).double(), kind)
    module, before, flags = _projection(model), state(model), [p.requires_grad for p in model.parameters()]
    with torch.no_grad():
        x = _states(module)
        own = module(x)
        found = linear_map(module, "it")
        torch.testing.assert_close(found(x), own, rtol=0, atol=IN_FP32.get(kind, 1e-9))
        merged = merged_by_peft(model).get_submodule(
            "transformer.h.1.mlp.c_proj" if base == "gpt2" else "model.layers.1.mlp.down_proj"
        )
        assert torch.equal(found.weight, merged.weight if base == "gpt2" else merged.weight.T)
        value = torch.randn(found.weight.shape, dtype=torch.float64)
        undo = replace_weight(module, "it", value)
        torch.testing.assert_close(module(x), x @ value + found.bias, rtol=0, atol=1e-9)
        assert torch.equal(read_weight(module, "it"), value)
        undo()
        assert torch.equal(module(x), own)
    assert same_state(model, before)
    assert flags == [p.requires_grad for p in model.parameters()]
    assert not any("forward" in m.__dict__ for m in model.modules())


def test_several_active_adapters_count_together_and_inactive_ones_do_not():
    from peft import LoraConfig

    model = adapted(build("llama", tie_word_embeddings=False).double(), "lora")
    base = _projection(model).base_layer.weight.detach().clone().T
    model.add_adapter("second", LoraConfig(r=3, target_modules=["down_proj"], init_lora_weights=False))
    first = read_weight(_projection(model), "it")
    model.base_model.set_adapter(["default", "second"])
    both = read_weight(_projection(model), "it")
    model.base_model.set_adapter("second")
    second = read_weight(_projection(model), "it")
    assert (first - base).norm() > 0.01
    torch.testing.assert_close(both - base, first - base + second - base)
    with model.disable_adapter():
        assert torch.equal(read_weight(_projection(model), "it"), base)


def test_a_merged_adapter_counts_once():
    plain = build("llama", tie_word_embeddings=False).double()
    model = adapted(plain, "dora")
    apart = read_weight(_projection(model), "it")
    model.merge_adapter()
    before = state(model)
    torch.testing.assert_close(read_weight(_projection(model), "it"), apart)
    with model.disable_adapter():  # its forward would take the adapter out again
        torch.testing.assert_close(
            read_weight(_projection(model), "it"), plain.model.layers[1].mlp.down_proj.weight.T, rtol=0, atol=1e-9
        )
    assert same_state(model, before)


def test_a_retrained_copy_of_the_projection_is_the_weight():
    model = adapted(
        build("llama", tie_word_embeddings=False), "lora", target_modules=["q_proj"], modules_to_save=["down_proj"]
    )
    module = _projection(model)
    assert torch.equal(read_weight(module, "it"), module.modules_to_save["default"].weight.T)
    assert not torch.equal(read_weight(module, "it"), module.original_module.weight.T)


def test_a_bf16_adapter_is_merged_as_peft_merges_it():
    model = adapted(build("llama", tie_word_embeddings=False).bfloat16(), "dora")
    merged = merged_by_peft(model).model.layers[1].mlp.down_proj.weight
    assert torch.equal(read_weight(_projection(model), "it"), merged.T)


def test_an_adapter_that_depends_on_its_input_has_no_weight():
    import peft

    config = peft.LilyConfig(target_modules=["down_proj"], task_type="CAUSAL_LM")
    model = disturbed(peft.get_peft_model(build("llama", tie_word_embeddings=False), config).eval())
    with pytest.raises(KrsError, match=r"does not apply one weight to every input.*merge_and_unload\(\)"):
        read_weight(_projection(model), "it")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_packed_weight_is_what_it_is_unpacked_to(dtype):
    module = Packed(nn.Linear(24, 16, bias=False, dtype=dtype))
    before = state(module)
    found = linear_map(module, "it")
    assert torch.equal(found.weight, module.unpacked().T)
    value = torch.randn(24, 16).to(dtype)
    undo = replace_weight(module, "it", value)
    x = torch.randn(3, 24).to(dtype)
    assert torch.equal(module(x), x @ value)
    undo()
    assert same_state(module, before)


def test_activations_that_are_rounded_too_leave_no_weight():
    with pytest.raises(
        KrsError, match=r"rounds activations.*load both models unquantised.*leave the weight points out"
    ):
        linear_map(Packed(nn.Linear(24, 16), rounds=True), "it")


def test_bitsandbytes_layers():
    """The real ones, where they are installed: four bits are unpacked, eight round activations too and are refused."""
    bnb = pytest.importorskip("bitsandbytes")
    linear = nn.Linear(128, 64, bias=False)
    four = bnb.nn.Linear4bit(128, 64, bias=False, compute_dtype=torch.float32, quant_type="nf4")
    four.weight = bnb.nn.Params4bit(linear.weight.detach().clone(), requires_grad=False, quant_type="nf4")
    four = four.to("cpu").eval()
    before = four.weight.detach().clone()
    unpacked = bnb.functional.dequantize_4bit(four.weight.data, four.weight.quant_state).T.float()
    torch.testing.assert_close(read_weight(four, "it"), unpacked, rtol=2**-6, atol=0)  # CPU kernels keep it in bf16
    assert torch.equal(four.weight, before)
    eight = bnb.nn.Linear8bitLt(128, 64, bias=False, has_fp16_weights=False)
    eight.weight = bnb.nn.Int8Params(linear.weight.detach().half(), requires_grad=False, has_fp16_weights=False)
    with pytest.raises(KrsError, match="rounds activations"):
        read_weight(eight.to("cpu").eval(), "it")


def test_a_linear_of_another_class_is_taken_at_its_forward():
    class Halved(nn.Linear):
        def forward(self, x):
            return super().forward(x) / 2

    module = Halved(5, 3, bias=False).double()
    torch.testing.assert_close(read_weight(module, "it"), module.weight.T / 2)
    undo = replace_weight(module, "it", torch.ones(5, 3, dtype=torch.float64))
    assert torch.equal(module(torch.ones(5, dtype=torch.float64)), torch.full((3,), 5.0, dtype=torch.float64))
    undo()


def test_a_parametrised_weight_is_read_and_replaced():
    from torch.nn.utils.parametrizations import weight_norm

    module = weight_norm(nn.Linear(5, 3).double())
    x = torch.randn(4, 5, dtype=torch.float64)
    own = module(x)
    torch.testing.assert_close(linear_map(module, "it")(x), own)
    undo = replace_weight(module, "it", torch.zeros(5, 3, dtype=torch.float64))
    torch.testing.assert_close(module(x), module.bias.expand(4, 3))
    undo()
    assert torch.equal(module(x), own)


def test_a_weight_is_not_edited_under_an_adapter():
    model = adapted(build("llama", tie_word_embeddings=False), "lora")
    before = state(model)
    with pytest.raises(KrsError, match=r"has an adapter around its weight.*merge adapters first"):
        write_weight(_projection(model), "it", torch.zeros(24, 16))
    assert same_state(model, before)


@pytest.mark.parametrize("kind", ["dora", "ia3", "lora-bias"])
def test_recorded_and_patched_value_vectors_are_the_merged_ones(kind):
    v = build("llama-bias", tie_word_embeddings=False).double()
    u = adapted(v, kind)
    merged = merged_by_peft(u)
    ids = torch.tensor([[3, 5, 8]])
    with record(u, VALUE_VECTORS + MLP_COEF, layers=[1]) as acts, torch.no_grad():
        u(input_ids=ids)
    assert torch.equal(acts[VALUE_VECTORS, 1], merged.model.layers[1].mlp.down_proj.weight.T)
    target = copy.deepcopy(merged)
    with torch.no_grad():
        target.model.layers[1].mlp.down_proj.weight.copy_(v.model.layers[1].mlp.down_proj.weight)
        with patched(u, VALUE_VECTORS.at(1).set(v)):
            torch.testing.assert_close(u(input_ids=ids).logits, target(input_ids=ids).logits, rtol=0, atol=1e-9)
            with patched(u, VALUE_VECTORS.at(1, units=[2]).map(lambda w: 0 * w)), record(u, VALUE_VECTORS) as inner:
                pass
            assert torch.equal(inner[VALUE_VECTORS, 1][2], torch.zeros(16, dtype=torch.float64))
            assert torch.equal(inner[VALUE_VECTORS, 1][3], v.model.layers[1].mlp.down_proj.weight.T[3])


def test_a_map_prints_its_shape():
    assert repr(LinearMap(torch.zeros(3, 2))) == "LinearMap([3, 2])"
