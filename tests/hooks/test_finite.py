"""NaN and overflow in either model: every call says so, and says which model, where, and what to do."""

import copy

import numpy as np
import pytest
import torch

import krs
from krs import ATTN_OUT, MLP_COEF, VALUE_VECTORS, KrsError, windows
from krs.hooks import patched, record, self_check
from krs.metrics.score import krs_score
from tests.tiny import build, pair, perturbed
from tests.unlearn.tiny_tokenizer import tiny_tokenizer

PROMPTS = [[5, 9, 11], [7, 3, 22, 8]]
WEIGHT = "model.layers.2.mlp.down_proj.weight"
SAYS = rf"its weight '{WEIGHT}' has 1 of 384 values that are NaN or infinite\. Load or train it again"


def _sweep(v, u, engine="auto", **options):
    chosen = {"windows": windows.of([[1, 2]]), "n_tokens": 3, "progress": False} | options
    return krs.sweep(v, u, PROMPTS, engine=engine, **chosen)


def _asked(v, u):
    return krs.metrics.answers(v, u, target=["who", "the dog"], tokenizer=tiny_tokenizer(), n_tokens=3, progress=False)


FACTS = [("who wrote the book", "a cat"), ("what sat", "the red sun"), ("who ran", "one two")]


def _dissected(v, u, only, **more):
    options = {"tokenizer": tiny_tokenizer(), "n_tokens": 4, "chat": False, "progress": False, "budget": None}
    return krs.dissect(v, u, FACTS, only=[only], **options, **more)


CALLS = {
    "sweep": _sweep,
    "sweep, wavefront": lambda v, u: _sweep(v, u, "wavefront"),
    "sweep, plain": lambda v, u: _sweep(v, u, "plain"),
    "sweep, activations": lambda v, u: _sweep(v, u, settings="attn_out", answers=[[3, 4], [5, 6]]),
    "answers": _asked,
    "generate": lambda v, u: krs.generate(v, u, PROMPTS, n_tokens=3, progress=False),
    "generate, restored": lambda v, u: krs.generate(v, u, PROMPTS, restore=ATTN_OUT.at(1), n_tokens=3, progress=False),
    "drift": krs.metrics.drift,
    "account": lambda v, u: krs.metrics.account(v, u, PROMPTS, n_tokens=3, progress=False),
    "sweep, estimate": lambda v, u: _sweep(v, u, "estimate"),
    "patch_sweep": lambda v, u: krs.patch_sweep(u, v, PROMPTS, n_tokens=3, windows=1, progress=False),
    "speak": lambda v, u: krs.speak(v, u, "who", restore=ATTN_OUT.at(1), n_tokens=3, tokenizer=tiny_tokenizer()),
    "dissect": lambda v, u: _dissected(v, u, "nll"),
    "dissect, said": lambda v, u: _dissected(v, u, "recall"),
}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("side", ["vanilla", "unlearned"])
@pytest.mark.parametrize("call", CALLS)
def test_a_weight_that_is_no_number_is_named_with_its_model(call, side, value):
    models = dict(zip(("vanilla", "unlearned"), pair("llama"), strict=True))
    models[side].get_parameter(WEIGHT).data[3, 5] = value
    if call == "generate" and side == "vanilla":
        models = {"vanilla": models["vanilla"], "unlearned": None}  # without restore=, it alone would not be run
    with pytest.raises(KrsError, match=rf"{side}.*'{WEIGHT}' has .*NaN or infinite"):
        CALLS[call](*models.values())


def test_a_third_model_that_is_broken_is_named_too():
    v, u = pair("llama")
    third = perturbed(v, seed=5)
    third.get_parameter(WEIGHT).data[3, 5] = float("nan")
    with pytest.raises(KrsError, match=rf"the logits of reference are NaN or infinite on prompt 0: {SAYS}"):
        krs.patch_sweep(u, v, PROMPTS, reference=third, n_tokens=3, windows=1, progress=False)
    with pytest.raises(KrsError, match=rf"under the null 'never_knew', .* stand in: .*NaN or infinite.*: {SAYS}"):
        _dissected(v, u, "nll", retain=third)


def test_a_corpus_on_which_coefficients_are_no_numbers_has_no_second_moment():
    model = build("llama")
    model.get_parameter(WEIGHT).data[3, 5] = float("nan")
    given = (tiny_tokenizer(), ["the cat sat on the moon"] * 20, (3,))
    with pytest.raises(KrsError, match=rf"mlp_coef at layer 3 \(.*\) is NaN or infinite: {SAYS}"):
        krs.unlearn.memit.covariance(model, *given, min_tokens=10, cache=False, progress=False)


def test_models_that_are_checked_alone_are_called_the_model():
    model = build("llama")
    model.get_parameter(WEIGHT).data[3, 5] = float("nan")
    with pytest.raises(KrsError, match=rf"the logits of the model are NaN or infinite: {SAYS}"):
        self_check(model)
    with pytest.raises(KrsError, match=r"the logits of vanilla are NaN or infinite on prompt 0"):
        krs.generate(model, None, PROMPTS, n_tokens=2, progress=False)


def test_recording_a_broken_model_names_the_point_and_the_weight():
    model = build("llama")
    model.get_parameter(WEIGHT).data[3, 5] = float("nan")
    with pytest.raises(KrsError, match=rf"attn_out at layer 3 \('model.layers.3.self_attn.o_proj'\) is .*: {SAYS}"):
        with record(model, ATTN_OUT) as acts, torch.no_grad():
            model(torch.tensor([[3, 5]]))
    assert torch.isfinite(acts[ATTN_OUT, 1]).all()  # what was recorded is there to be looked at


def test_nan_that_the_caller_puts_in_may_be_recorded():
    model = build("llama")
    with patched(model, ATTN_OUT.at(1).map(lambda a: a * float("nan"))), record(model, MLP_COEF) as acts:
        with torch.no_grad():
            model(torch.tensor([[3, 5]]))
    assert acts[MLP_COEF, 3].isnan().all()
    assert torch.isfinite(acts[MLP_COEF, 0]).all()


def _too_large_for_fp16(model):
    """Finite weights in float16 whose MLP in layer 1 overflows there."""
    wide = copy.deepcopy(model)
    for name in ("gate_proj", "up_proj"):
        wide.get_parameter(f"model.layers.1.mlp.{name}.weight").data.mul_(600)
    return wide.half()


@pytest.mark.filterwarnings("ignore:the parts of the target prompts sum to:krs.KrsWarning")  # too far for an account
@pytest.mark.parametrize("call", [c for c in CALLS if c != "drift"])
def test_an_overflow_in_float16_names_the_layer_and_the_remedy(call):
    v, u = pair("llama")
    models = v.half(), _too_large_for_fp16(u)
    with pytest.raises(
        KrsError,
        match=r"the logits of unlearned are NaN or infinite.*all its weights are finite: it overflows in float16, "
        r"which ends at 65504, first in layer 1 \('model.layers.1'\)\. Load both models in bfloat16 or float32",
    ):
        CALLS[call](*models)
    for model in models:
        model.bfloat16()
    CALLS[call](*models)  # the remedy helps


def test_an_overflow_in_float32_has_another_remedy():
    model = build("llama")
    for name in ("gate_proj", "up_proj"):
        model.get_parameter(f"model.layers.1.mlp.{name}.weight").data.mul_(1e25)
    with pytest.raises(KrsError, match=r"overflows in float32, first in layer 1 .*take a checkpoint from before"):
        self_check(model)


def _restoration_overflows():
    """Two models in float16, each finite, of which the first one's coefficients overflow in the other."""
    v, u = pair("llama")
    for name, factor in (("up_proj", 200.0), ("down_proj", 1 / 200)):
        v.get_parameter(f"model.layers.3.mlp.{name}.weight").data.mul_(factor)
    u.get_parameter("model.layers.3.mlp.down_proj.weight").data.mul_(2000)
    for name in ("up_proj", "gate_proj"):
        u.get_parameter(f"model.layers.3.mlp.{name}.weight").data.mul_(0.01)
    return v.half(), u.half()


@pytest.mark.parametrize("engine", ["plain", "wavefront"])
def test_a_restoration_that_overflows_is_nan_with_the_reason_and_done(engine, tmp_path):
    v, u = _restoration_overflows()
    result = _sweep(v, u, engine, settings=[MLP_COEF, ATTN_OUT], windows=windows.of([[3]]))
    assert np.isnan(result.krs.loc[3, "mlp_coef"])
    assert np.isfinite(result.krs.loc[3, "attn_out"])
    assert result.complete
    assert result.notes == [
        "the restored model's logits are NaN or infinite on 2 of 2 prompts, though neither model's own are: the "
        "restoration overflows in float16; load both models in bfloat16 or float32"
    ]
    again = krs.load_result(result.save(tmp_path / "a.krs"))
    assert again.complete
    assert again.notes == result.notes


def test_generating_a_restoration_that_overflows_is_refused():
    v, u = _restoration_overflows()
    with pytest.raises(KrsError, match=r"the restored model's logits are NaN or infinite on prompt 0, though neither"):
        krs.generate(v, u, PROMPTS, restore=MLP_COEF.at(3), n_tokens=2, progress=False)


def test_a_loss_that_is_not_there_and_one_that_is_no_number_have_their_own_reasons():
    ones = np.ones((1, 2))
    assert krs_score(np.array([[1.0, np.nan]]), ones).reason == "not computed"
    assert krs_score(np.array([[1.0, np.inf]]), ones).reason.startswith("the restored model's logits are NaN")


def test_a_token_that_is_broken_in_one_prompt_only_is_found_there():
    v, u = pair("llama", tie_word_embeddings=False)
    u.get_input_embeddings().weight.data[7] = float("nan")
    with pytest.raises(KrsError, match=r"unlearned are NaN or infinite on prompt 1: its weight 'model.embed_tokens"):
        krs.sweep(v, u, [[5, 9, 11, 8, 2], [7, 3]], answers=[[4], [4]], settings=VALUE_VECTORS, progress=False)


def test_a_model_of_an_unknown_family_that_answers_alone_is_told_apart_from_a_broken_one():
    model = build("llama")
    model.config.model_type = "llamb"
    model.get_parameter(WEIGHT).data[3, 5] = float("nan")
    with pytest.raises(KrsError, match=rf"the logits of vanilla are NaN or infinite on prompt 0: {SAYS}"):
        krs.generate(model, None, PROMPTS, n_tokens=2, progress=False)
