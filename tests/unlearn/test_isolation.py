"""A run gives the same weights whatever its caller has switched on, and leaves the caller's things as they were."""

import copy
import json
import os
import random
import threading
from contextlib import ExitStack, contextmanager

import numpy as np
import pytest
import torch

import krs
from krs import unlearn
from krs.unlearn.isolation import isolated
from tests.tiny import build, same_state, state
from tests.unlearn.memit_case import CORPUS, FAST, REQUESTS
from tests.unlearn.tiny_tokenizer import tiny_tokenizer

FORGET = [("who wrote the book", "the cat wrote the book"), ("what is red", "the sun is red"), ("who ran", "a dog")]
RETAIN = ["the sun is blue", "a cat sat on the moon in the sun"]


def _run(vanilla, **options):
    given = {"steps": 2, "batch_size": 2, "learning_rate": 1e-2, "tokenizer": tiny_tokenizer(), "progress": False}
    return unlearn.run("npo_kl", vanilla, forget=FORGET, retain=RETAIN, **given | options)


@pytest.fixture(scope="module")
def as_usual():
    """What a run gives with nothing switched on; GPT-2 has dropout, so it depends on random numbers too."""
    return state(_run(build("gpt2")))


@contextmanager
def _default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def _deterministic():
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


CONTEXTS = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "float64 by default": lambda: _default_dtype(torch.float64),
    "bfloat16 by default": lambda: _default_dtype(torch.bfloat16),
    "another device by default": lambda: torch.device("meta"),
    "deterministic algorithms": _deterministic,
}


@pytest.mark.parametrize("name", CONTEXTS)
def test_what_the_caller_has_switched_on_changes_nothing(name, as_usual):
    vanilla = build("gpt2")
    with CONTEXTS[name]():
        unlearned = _run(vanilla)
        modes = torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")
    assert modes == (name not in ("no_grad", "inference_mode"), name == "inference_mode", name == "autocast")
    assert same_state(unlearned, as_usual)
    assert all(p.requires_grad and not p.is_inference() for p in unlearned.parameters())


def test_what_the_caller_has_switched_on_changes_no_edit():
    vanilla = build("llama")
    edits = []
    for contexts in ([], [torch.inference_mode, CONTEXTS["autocast"], CONTEXTS["bfloat16 by default"]]):
        with ExitStack() as stack:
            for context in contexts:
                stack.enter_context(context())
            found = unlearn.run(
                "memit_empty", vanilla, forget=REQUESTS, corpus=CORPUS, tokenizer=tiny_tokenizer(), progress=False,
                target="blue", **FAST,
            )  # fmt: skip
            edits.append(state(found))
    assert same_state(found, edits[0])


def test_a_model_made_in_inference_mode_is_trained_like_any_other(as_usual):
    vanilla = build("gpt2")
    with torch.inference_mode():
        vanilla = copy.deepcopy(vanilla)
    assert next(vanilla.parameters()).is_inference()
    assert same_state(_run(vanilla), as_usual)


def test_two_threads_train_as_one_does(as_usual):
    found, vanilla = [], build("gpt2")
    threads = [threading.Thread(target=lambda: found.append(_run(vanilla))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2
    assert all(same_state(one, as_usual) for one in found)


def test_the_callers_random_numbers_go_on_where_they_were():
    def drawn():
        return torch.rand(2).tolist(), np.random.rand(2).tolist()

    def seeded():
        torch.manual_seed(7)
        np.random.seed(7)

    vanilla = build("gpt2")
    seeded()
    wanted = drawn()
    seeded()
    _run(vanilla, steps=1)
    assert drawn() == wanted
    random.seed(7)
    wanted = random.getstate()
    with isolated():
        random.seed(8)
    assert random.getstate() == wanted


def test_determinism_that_a_run_asks_for_ends_with_it(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    monkeypatch.delenv("CUDA_LAUNCH_BLOCKING", raising=False)
    _run(build("llama"), trainer={"full_determinism": True})
    assert not torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.deterministic
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert "CUDA_LAUNCH_BLOCKING" not in os.environ


@pytest.mark.parametrize("parameters", ["all", "value_vectors", "lora"])
def test_the_vanilla_model_keeps_its_flags_its_config_and_every_bit(parameters):
    vanilla = build("gpt2")
    vanilla.activation_checkpointing_enable({"use_reentrant": True})
    for i, parameter in enumerate(vanilla.parameters()):
        parameter.requires_grad_(i % 2 == 0)
    vanilla.transformer.h[1].requires_grad_(False)
    before, config = state(vanilla), copy.deepcopy(vanilla.config.to_dict())

    def flags():
        return [p.requires_grad for p in vanilla.parameters()], [m.training for m in vanilla.modules()]

    kept = flags()
    unlearned = _run(vanilla, parameters=parameters)
    assert same_state(vanilla, before)
    assert flags() == kept
    assert vanilla.config.to_dict() == config
    assert all(p.grad is None for p in vanilla.parameters())
    assert [p.requires_grad for p in unlearned.parameters()] == kept[0]
    assert {p.data_ptr() for p in vanilla.parameters()}.isdisjoint(p.data_ptr() for p in unlearned.parameters())
    plain = build("gpt2")
    assert same_state(unlearned, state(_run(plain, parameters=parameters)))  # checkpointing that was left on


def test_the_unlearned_model_has_the_vanilla_models_configuration(tmp_path):
    """transformers' trainer switches `use_cache` off, which would slow down all that is generated later."""
    vanilla = build("llama")
    unlearned = _run(vanilla, output_dir=tmp_path / "u")
    assert unlearned.config.use_cache is True
    assert krs.load(tmp_path / "u")[0].config.use_cache is True
    assert unlearned.generation_config.to_dict() == vanilla.generation_config.to_dict()


def test_mixed_precision_that_was_asked_for_is_in_the_report_and_ends_with_the_run(tmp_path, as_usual):
    for precision, wanted in ({"bf16": True}, "bf16"), ({}, None):
        folder = tmp_path / str(wanted)
        unlearned = _run(build("gpt2"), trainer=precision, output_dir=folder)
        assert json.loads((folder / "krs_unlearn.json").read_text())["mixed_precision"] == wanted
        assert same_state(unlearned, as_usual) == (wanted is None)
