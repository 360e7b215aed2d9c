"""Where answers end, and what `generate` takes."""

import copy

import pytest
from transformers import GenerationConfig

import krs
from krs import KrsError
from krs.generation import generate
from krs.generation.greedy import eos_ids
from tests.prompts.tokenizers import tokenizer_with
from tests.tiny import build, perturbed
from tests.unlearn.tiny_tokenizer import tiny_tokenizer

PROMPTS = ["who wrote the book", "the cat was"]
VOCAB = 24


@pytest.fixture(scope="module")
def model():
    """One whose greedy answers do not repeat a single token: (4, 3, 16, …) and (21, 4, 11, …)."""
    return build("qwen2", seed=1, vocab_size=VOCAB)


def _said(model, n=6):
    """Greedy ids without any end."""
    endless = copy.deepcopy(model)
    endless.generation_config.eos_token_id = endless.config.eos_token_id = None
    return generate(endless, None, PROMPTS, n_tokens=n, tokenizer=tiny_tokenizer(), progress=False).token_ids


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [(7, 1, {7}), ([7, 9], 1, {7, 9}), (None, 1, {1}), (None, [1, 3], {1, 3}), (None, None, set())],
)
def test_the_generation_config_goes_before_the_config(model, generation, config, expected):
    one = copy.deepcopy(model)
    one.generation_config, one.config.eos_token_id = GenerationConfig(eos_token_id=generation), config
    assert eos_ids(one) == expected


def test_any_of_the_models_ends_ends_an_answer(model):
    said = _said(model)
    one = copy.deepcopy(model)
    one.generation_config.eos_token_id = [said[0][1], said[1][2], VOCAB - 1]
    found = generate(one, None, PROMPTS, n_tokens=6, tokenizer=tiny_tokenizer(), progress=False).token_ids
    ends = eos_ids(one)
    for answer, whole in zip(found, said, strict=True):
        first = next((i for i, t in enumerate(whole) if t in ends), len(whole) - 1)
        assert answer == whole[: first + 1]


def test_a_copy_that_lost_its_ends_stops_where_the_vanilla_model_stops(model):
    vanilla = copy.deepcopy(model)
    vanilla.generation_config.eos_token_id = vanilla.config.eos_token_id = _said(model)[0][2]
    lost = copy.deepcopy(vanilla)
    lost.generation_config.eos_token_id = lost.config.eos_token_id = None
    options = {"n_tokens": 6, "tokenizer": tiny_tokenizer(), "progress": False}
    alone = generate(vanilla, None, PROMPTS, **options)
    assert len(alone.token_ids[0]) < 6
    assert generate(vanilla, lost, PROMPTS, **options).token_ids == alone.token_ids
    for kind in ("sacrebleu", "paper-code"):
        found = krs.metrics.answers(vanilla, lost, PROMPTS, bleu=kind, **options)
        assert found.token_ids["unlearned"] == found.token_ids["vanilla"] == list(alone.token_ids)
        assert (found.frame.bleu == found.frame.ceiling).all()
    assert krs.metrics.answers(vanilla, lost, PROMPTS, **options).table.bleu["target"] == pytest.approx(100)


def test_models_may_be_given_by_name(tmp_path):
    v = build("llama")
    u = perturbed(v, scale=0.5)
    for name, one in (("v", v), ("u", u)):
        one.save_pretrained(tmp_path / name)
        tiny_tokenizer().save_pretrained(tmp_path / name)
    options = {"n_tokens": 3, "progress": False}
    for given in (("v", None), ("v", "u"), ("u", None)):
        names = [None if name is None else str(tmp_path / name) for name in given]
        models = [{"v": v, "u": u, None: None}[name] for name in given]
        found = generate(*names, PROMPTS, **options)
        assert found.token_ids == generate(*models, PROMPTS, tokenizer=tiny_tokenizer(), **options).token_ids
        assert found.texts is not None


def test_prompts_that_do_not_fit_and_such_that_are_none(model, as_a_user):
    for prompts, message in [
        ("hello", "prompts is one string"),
        (
            [[5, VOCAB]],
            f"prompt 0 has the token id {VOCAB}, but the model's vocabulary has {VOCAB} entries",
        ),
        ([[5] * 60], "prompt 0 has 60 tokens; with n_tokens=30 it is longer than the model's context of 64"),
    ]:
        with pytest.raises(KrsError, match=message):
            generate(model, None, prompts, progress=False)


def test_template_arguments_and_generators(model):
    asked = [[{"role": "user", "content": "the cat"}]]
    tokenizer = tokenizer_with()
    options = {"tokenizer": tokenizer, "n_tokens": 4, "progress": False}
    for thinking in (False, True):
        text = tokenizer.apply_chat_template(
            asked[0], add_generation_prompt=True, tokenize=False, enable_thinking=thinking
        )
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        found = generate(model, None, (a for a in asked), chat_template_kwargs={"enable_thinking": thinking}, **options)
        assert found.token_ids == generate(model, None, [ids], **options).token_ids
    with pytest.raises(KrsError, match="chat_template_kwargs= is for chat messages, and no prompt is one"):
        generate(model, None, PROMPTS, chat_template_kwargs={"enable_thinking": True}, **options)
