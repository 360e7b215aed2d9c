"""A prompt's numbers are those that it has by itself, in models in which neighbours matter too."""

import numpy as np
import pytest
import torch
from torch import nn

import krs
from krs import ATTN_OUT, MLP_COEF, VALUE_VECTORS, KrsError, windows
from krs.generation.batching import neighbours_matter
from tests.hooks.test_rope import DYNAMIC, LONG
from tests.tiny import FAMILIES, build, pair, same_state, state
from tests.unlearn.tiny_tokenizer import tiny_tokenizer

SHORT, LONGER = [5, 9, 11], [7, 3, 22, 8, 40, 2, 17, 33, 12, 9, 4]
PROMPTS = [SHORT, LONGER, [13, 2]]


class _SharedScale(nn.Module):
    """A projection whose input is rounded to eight bits by one scale for the whole batch, as quantised models may."""

    def __init__(self, inner):
        super().__init__()
        self.weight, self.bias = inner.weight, inner.bias

    def forward(self, x):
        scale = x.abs().max() / 127
        return nn.functional.linear((x / scale).round() * scale, self.weight, self.bias)


def _quantised(model):
    for layer in model.model.layers:
        layer.mlp.up_proj = _SharedScale(layer.mlp.up_proj)
    return model.eval()


def _long(name, options):
    v, u = pair(name, **options)
    return v.double(), u.double()


MODELS = {
    "longrope": lambda: _long("phi3", LONG),
    "longrope, llama": lambda: _long("llama", LONG),
    "shared scale": lambda: tuple(map(_quantised, _long("llama", {}))),
}


def _sweep(v, u, prompts, engine="auto"):
    chosen = {"settings": [MLP_COEF, VALUE_VECTORS, MLP_COEF + ATTN_OUT], "windows": windows.of([[1, 2], [3]])}
    return krs.sweep(v, u, prompts, **chosen, n_tokens=4, progress=False, engine=engine)


@pytest.mark.filterwarnings("ignore:.*answers are empty")  # these models of random weights end some at once
@pytest.mark.parametrize("engine", ["auto", "plain"])
@pytest.mark.parametrize("name", MODELS)
def test_a_prompt_scores_as_it_does_alone(name, engine):
    v, u = MODELS[name]()
    before = state(v), state(u)
    together = _sweep(v, u, PROMPTS, engine)
    assert together.provenance["engine"] == ("plain" if engine == "plain" or name == "shared scale" else "wavefront")
    assert together.provenance["batching"].startswith("a prompt at a time: vanilla: ")
    for i, prompt in enumerate(PROMPTS):
        alone = _sweep(*MODELS[name](), [prompt], "plain")
        assert alone.answers == together.answers[i : i + 1]
        n = alone.losses.mask.sum()
        np.testing.assert_allclose(together.losses.restored[:, i, :n], alone.losses.restored[:, 0], rtol=1e-9)
        np.testing.assert_allclose(together.losses.baseline[i, :n], alone.losses.baseline[0], rtol=1e-9)
    assert same_state(v, before[0])
    assert same_state(u, before[1])


def test_the_models_of_these_tests_do_depend_on_their_neighbours():
    for make in MODELS.values():
        model, _ = make()
        ids = torch.tensor([SHORT + [0] * 8, LONGER])
        mask = torch.tensor([[1] * 3 + [0] * 8, [1] * 11])
        with torch.no_grad():
            together = model(ids, attention_mask=mask).logits[0, :3]
            alone = model(torch.tensor([SHORT])).logits[0]
        assert (together - alone).abs().max() > 1e-3


@pytest.mark.filterwarnings("ignore:.*answers are empty")
@pytest.mark.parametrize("name", MODELS)
def test_answers_are_those_of_each_prompt_by_itself(name):
    v, u = MODELS[name]()
    restore = (MLP_COEF + VALUE_VECTORS).at(1, 2)
    together = krs.generate(v, u, PROMPTS, restore=restore, n_tokens=8, progress=False)
    tokenizer, questions = tiny_tokenizer(), ["who", "the dog sat on the moon in the red book of one two"]
    asked = krs.metrics.answers(v, u, target=questions, tokenizer=tokenizer, n_tokens=3, progress=False).frame
    for i, prompt in enumerate(PROMPTS):
        assert krs.generate(*MODELS[name](), [prompt], restore=restore, n_tokens=8, progress=False)[0] == together[i]
    for i, question in enumerate(questions):
        alone = krs.metrics.answers(
            *MODELS[name](), target=[question], tokenizer=tokenizer, n_tokens=3, progress=False
        ).frame
        np.testing.assert_allclose(alone[["nll", "nll_vanilla"]], asked[["nll", "nll_vanilla"]][i : i + 1], rtol=1e-6)
        assert alone.unlearned[0] == asked.unlearned[i]


@pytest.mark.parametrize(("name", "options"), [("phi3", LONG), ("llama", DYNAMIC | {"max_position_embeddings": 8})])
def test_greedy_answers_are_those_of_generate_across_the_switch(name, options):
    model = build(name, **options).double()
    ours = krs.generate(model, None, PROMPTS, n_tokens=12, progress=False)
    for prompt, answer in zip(PROMPTS, ours, strict=True):
        fresh = build(name, **options).double()
        theirs = fresh.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False)[0, len(prompt) :]
        assert answer == tuple(theirs.tolist())


def test_what_was_seen_before_does_not_matter():
    options = DYNAMIC | {"max_position_embeddings": 8}
    model = build("llama", **options).double()
    expected = krs.generate(model, None, [SHORT * 3], n_tokens=6, progress=False)[0]
    with torch.no_grad():
        model(torch.arange(40)[None])
    assert krs.generate(model, None, [SHORT * 3], n_tokens=6, progress=False)[0] == expected


@pytest.mark.parametrize("name", [*FAMILIES, "moe"])
def test_neighbours_do_not_matter_in_any_family(name):
    assert neighbours_matter(build(name), (tuple(SHORT), tuple(LONGER))) == ""


def test_prompts_that_begin_and_end_alike_are_told_apart_too():
    model, _ = MODELS["shared scale"]()
    begin, end = tuple(range(10, 25)), tuple(range(30, 45))
    prompts = ((*begin, 3, *end), (*begin, 4, 5, *end))
    assert neighbours_matter(model, prompts) == "a prompt's logits change with the prompts that are batched with it"


def test_the_wavefront_refuses_what_only_a_prompt_at_a_time_can_do():
    v, u = MODELS["shared scale"]()
    with pytest.raises(KrsError, match=r"what a row gives depends on the other rows that are computed with it"):
        _sweep(v, u, PROMPTS, "wavefront")


def test_padding_that_makes_nan_is_left_out():
    model = build("gemma2").double()  # its softmax, in float32, makes NaN of a fully masked row
    ids = torch.tensor([[1, 1, 5, 9], LONGER[:4]])
    with torch.no_grad():
        logits = model(ids, attention_mask=torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])).logits
    assert logits[0, -1].isnan().any()
    together = krs.generate(model, None, PROMPTS, n_tokens=4, progress=False)
    for prompt, answer in zip(PROMPTS, together, strict=True):
        assert krs.generate(model, None, [prompt], n_tokens=4, progress=False)[0] == answer
