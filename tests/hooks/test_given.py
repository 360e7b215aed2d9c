"""What stands where a model is wanted is named, and what to pass instead."""

import types

import pytest
import torch

import krs
from krs import KrsError
from krs.hooks.given import check_model
from tests.unlearn.tiny_tokenizer import tiny_tokenizer

MODEL = torch.nn.Linear(2, 2)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            (MODEL, None),
            "vanilla is a tuple: krs.load returns two things, the model and its tokenizer; write",
        ),
        (None, "vanilla is None, not a model: pass a transformers causal LM"),
        (tiny_tokenizer(), r"vanilla is a tokenizer \(\w+\), not a model: pass the model, and this as tokenizer="),
        (torch.nn.Linear, "vanilla is the class Linear, not a model: pass what its from_pretrained returns"),
        (types.SimpleNamespace(model=MODEL), "not a model: pass the model in it, its attribute .model"),
        (["who wrote the book"], "vanilla is a list, not a model: pass the models first, then the prompts"),
        (3, "vanilla is a int, not a model"),
    ],
)
def test_every_call_that_takes_a_model_says_what_it_was_given(given, message, as_a_user):
    calls = [
        lambda: check_model(given, "vanilla"),
        lambda: krs.sweep(given, MODEL, ["a"]),
        lambda: krs.generate(given, None, ["a"]),
        lambda: krs.metrics.answers(given, MODEL, ["a"]),
        lambda: krs.metrics.drift(given, MODEL),
    ]
    for call in calls:
        with pytest.raises(KrsError, match=message):
            call()


def test_training_says_it_too(as_a_user):
    with pytest.raises(KrsError, match="the model is a tuple: krs.load returns two things"):
        krs.unlearn.run("ga", (MODEL, None), forget=["a text"])


def test_loading_what_is_no_name(as_a_user):
    for given, name in ((None, "None"), (MODEL, "a Linear"), ((MODEL, None), "a tuple")):
        with pytest.raises(KrsError, match=f"krs.load takes a name, and was given {name}: a model that is loaded is"):
            krs.load(given)


def test_prompts_in_a_models_place_and_models_in_the_prompts(as_a_user):
    with pytest.raises(KrsError, match="prompts is a Linear: pass a list of prompts; models come first"):
        krs.sweep(["a"], MODEL, MODEL)
    with pytest.raises(KrsError, match="no such path|no model is called|is neither a local path"):
        krs.generate("./smollm", None, ["a"])
