"""Whatever surrounds a call, a number is what the models themselves compute, and the surroundings stay as they were."""

import contextlib
import copy
import threading

import numpy as np
import pytest
import torch

import krs
from krs import ATTN_OUT, MLP_COEF, VALUE_VECTORS, KrsError, windows
from krs.hooks import context, patched, record, self_check
from krs.hooks.context import numerics, plain_calls, plain_numerics
from tests.tiny import build, pair, same_state, state
from tests.unlearn.tiny_tokenizer import tiny_tokenizer

PROMPTS = [[5, 9, 11], [7, 3, 22, 8]]
V, U = pair("llama")


@contextlib.contextmanager
def _default_dtype():
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextlib.contextmanager
def _default_device():
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextlib.contextmanager
def _deterministic():
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextlib.contextmanager
def _config(**options):
    had = [(c, dict(vars(c))) for c in (V.config, U.config)]
    try:
        for config, _ in had:
            vars(config).update(options)
        yield
        assert all(vars(c) == before | options for c, before in had)
    finally:
        for config, before in had:
            vars(config).clear()
            vars(config).update(before)


SURROUNDINGS = {
    "inference mode": torch.inference_mode,
    "no gradients": torch.no_grad,
    "gradients": torch.enable_grad,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "a default dtype": _default_dtype,
    "a default device": _default_device,
    "a device context": lambda: torch.device("meta"),
    "deterministic algorithms": _deterministic,
    "use_cache": lambda: _config(use_cache=False),
    "output_hidden_states": lambda: _config(output_hidden_states=True),
    "output_attentions": lambda: _config(_output_attentions=True),
    "return_dict": lambda: _config(return_dict=False),
}


def _sweep(v, u, engine="auto"):
    chosen = {"settings": [MLP_COEF + ATTN_OUT, VALUE_VECTORS], "windows": windows.of([[1, 2], [3]]), "n_tokens": 3}
    return krs.sweep(v, u, PROMPTS, progress=False, engine=engine, **chosen)


def _everything():
    both = [_sweep(V, U, engine) for engine in ("auto", "plain")]
    asked = krs.metrics.answers(V, U, target=["who", "the dog"], tokenizer=tiny_tokenizer(), n_tokens=3, progress=False)
    restored = krs.generate(V, U, PROMPTS, restore=(MLP_COEF + VALUE_VECTORS).at(1, 2), n_tokens=3, progress=False)
    numbers = {
        "krs": [swept.krs.to_numpy() for swept in both],
        "nll": asked.frame[["nll", "nll_vanilla"]].to_numpy(),
        "drift": krs.metrics.drift(V, U).by_component().to_numpy(),
        "check": list(self_check(U).effect.values()),
    }
    texts = {
        "engines": [swept.provenance["engine"] for swept in both],
        "generated": restored.token_ids,
        "answers": asked.token_ids,
    }
    return numbers, texts


def _looked_into():
    """What has come since: readings with and without gradients, copies that are trained or rounded, and their nulls."""
    facts = [("who wrote the book", "a cat"), ("what sat", "the red sun"), ("who ran", "one two")]
    only = ["nll", "relearn", "quantise_4", "logit_lens", "state_drop", "account", "krs", "held_out_restoration"]
    options = {"tokenizer": tiny_tokenizer(), "n_tokens": 4, "chat": False, "progress": False, "budget": None}
    found = krs.dissect(V, U, facts, only=only, **options)
    looks = krs.instruments.watch(V, tiny_tokenizer(), facts, instruments=["nll_tail", "state_drop"], chat=False)
    some = {"windows": windows.of([[1, 2], [3]]), "n_tokens": 3, "progress": False}
    return {
        **{name: reading.values for name, reading in found.readings.items()},
        **{f"{name}, {null}": v for name, reading in found.readings.items() for null, v in reading.nulls.items()},
        "watched": list(looks(U, 0).values()),
        "estimated": krs.sweep(V, U, PROMPTS, settings=[MLP_COEF, ATTN_OUT], engine="estimate", **some).krs.to_numpy(),
        "patched": krs.patch_sweep(U, V, PROMPTS, settings=[ATTN_OUT], **some).recovery().to_numpy(),
        "accounted": krs.account(V, U, PROMPTS, n_tokens=3, points=16, progress=False).parts,
    }


@pytest.fixture(scope="module")
def expected():
    return _everything()


@pytest.fixture(scope="module")
def looked_into():
    return _looked_into()


_TELLING = ("inference mode", "autocast", "return_dict")
"""Those under which something went wrong once; the others are tried by `make test-all`."""


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in _TELLING else [pytest.mark.long]) for n in SURROUNDINGS]
)
def test_every_instrument_reads_the_same_in_any_surroundings(name, looked_into):
    before = state(V), state(U)
    with SURROUNDINGS[name]():
        found = _looked_into()
    assert found.keys() == looked_into.keys()
    for what, values in looked_into.items():
        np.testing.assert_allclose(found[what], values, rtol=1e-4, atol=1e-4, err_msg=what)
    assert same_state(V, before[0])
    assert same_state(U, before[1])


@pytest.mark.parametrize("name", SURROUNDINGS)
def test_every_call_gives_the_same_numbers_in_any_surroundings(name, expected):
    before, rng = (state(V), state(U)), torch.get_rng_state()
    with SURROUNDINGS[name]():
        numbers, texts = _everything()
    for what, value in numbers.items():  # bfloat16 would move them by some 4e-3
        np.testing.assert_allclose(value, expected[0][what], rtol=1e-4, atol=1e-4, err_msg=what)
    assert texts == expected[1]
    assert texts["engines"] == ["wavefront", "plain"]
    assert same_state(V, before[0])
    assert same_state(U, before[1])
    assert torch.equal(torch.get_rng_state(), rng)


def test_provenance_says_under_which_numerics_a_sweep_ran():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        made = _sweep(V, U).provenance
    assert made["numerics"] == {
        "autocast": "off",
        "float32_matmul_precision": "highest",
        "deterministic_algorithms": False,
    }


@pytest.mark.parametrize("engine", ["auto", "plain"])
def test_models_made_in_inference_mode_are_swept_like_any_other(engine):
    with torch.inference_mode():
        v, u = pair("llama")
    np.testing.assert_allclose(_sweep(v, u, engine).krs, _sweep(V, U, engine).krs, rtol=1e-4, atol=1e-4)


def test_replaced_weights_act_under_autocast_although_it_keeps_their_casts():
    ids = torch.tensor([[3, 5, 8]])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        before = U(ids).logits
        with patched(U, VALUE_VECTORS.at(0, 1, 2, 3).set(V)):
            inside = U(ids).logits
        after = U(ids).logits
    with torch.autocast("cpu", dtype=torch.bfloat16), patched(U, VALUE_VECTORS.at(0, 1, 2, 3).set(V)):
        by_itself = U(ids).logits
    assert torch.equal(inside, by_itself)
    assert not torch.equal(inside, before)
    assert torch.equal(after, before)


def test_what_was_recorded_in_inference_mode_can_be_trained_through():
    ids = torch.tensor([[3, 5, 8]])
    model = copy.deepcopy(U)
    with torch.inference_mode(), record(V, MLP_COEF, layers=[1]) as acts:
        V(ids)
    with patched(model, MLP_COEF.at(1).set(acts)):
        model(ids).logits.sum().backward()
    assert model.model.layers[1].mlp.down_proj.weight.grad is not None


def test_numbers_can_be_put_in_whatever_the_default_device():
    ids = torch.tensor([[3, 5, 8]])
    with torch.no_grad(), patched(U, ATTN_OUT.at(1).set(0.0)):
        expected = U(ids).logits
    with torch.no_grad(), _default_device(), patched(U, ATTN_OUT.at(1).set(0.0)):
        assert torch.equal(U(ids).logits, expected)


def test_another_thread_with_the_same_model_is_refused_and_later_let_in():
    refused = []

    def sweep():
        try:
            _sweep(V, U)
        except KrsError as error:
            refused.append(str(error))

    with plain_calls(U):
        thread = threading.Thread(target=sweep)
        thread.start()
        thread.join()
    assert len(refused) == 1
    assert refused[0].startswith("another thread is inside a call of krs with this LlamaForCausalLM")
    assert "one after the other" in refused[0]
    thread = threading.Thread(target=sweep)
    thread.start()
    thread.join()
    assert len(refused) == 1


def test_models_of_one_configuration_object_run_in_one_thread_at_a_time():
    """What a pass sets there would be what the other thread's models attend with, and could stay."""
    config = V.config
    others = [type(V)(config).eval() for _ in range(2)]
    refused = []

    def sweep():
        try:
            _sweep(*others)
        except KrsError as error:
            refused.append(str(error))

    for inside in (plain_calls(V), contextlib.nullcontext()):
        with inside:
            thread = threading.Thread(target=sweep)
            thread.start()
            thread.join()
        assert len(refused) == 1
    assert refused[0].startswith("another thread is inside a call of krs with a model that has the same configuration")
    assert config._attn_implementation == "sdpa"
    assert not context._CONFIGS


def test_matmul_precision_is_told_by_backend_where_it_was_set_so():
    backend = torch.backends.cuda.matmul
    before, backend.fp32_precision = backend.fp32_precision, "tf32"
    try:
        assert numerics()["float32_matmul_precision"].startswith("cuda: tf32, cpu: ")
    finally:
        backend.fp32_precision = before
    assert numerics()["float32_matmul_precision"] == "highest"


def _fails(model):
    with plain_numerics(), plain_calls(model):
        assert torch.get_default_dtype() == torch.float32
        assert not model.config.output_hidden_states
        raise RuntimeError("stop")


def test_the_surroundings_are_back_after_an_error():
    model = build("llama")
    model.config.output_hidden_states = True
    with _default_dtype():
        with pytest.raises(RuntimeError, match="stop"):
            _fails(model)
        assert torch.get_default_dtype() == torch.float64
    assert model.config.output_hidden_states
    with plain_calls(model):
        pass
