"""The bundled model: sweeps equal hooks written out by hand, and generation is what it says."""

import copy
import time

import numpy as np
import pytest
import torch

import krs
from krs import ATTN_OUT, MLP_COEF, VALUE_VECTORS, windows
from krs.data.concepts import as_chat, load_concept
from krs.hooks import self_check
from krs.models.identity import identity
from tests import by_hand
from tests.noise import assert_rounds_alike, assert_same
from tests.tiny import same_state, state

pytestmark = pytest.mark.real
WINDOWS = [[3, 4, 5], [14, 15, 16], [27, 28, 29]]
SETTINGS = ["mlp_coef", "value_vectors", "attn_out", "mlp_coef+attn_out"]


@pytest.fixture(scope="module")
def models(smollm2):
    """The vanilla model, and a copy whose layers have moved by about 2 % (training would take too long here)."""
    vanilla, tokenizer = smollm2
    unlearned = copy.deepcopy(vanilla)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in unlearned.named_parameters():
            if "layers" in name:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(0.02 * parameter.std() * noise)
    return vanilla, unlearned, tokenizer


@pytest.fixture(scope="module")
def exact(models):
    """Both models in float64."""
    vanilla, unlearned, tokenizer = models
    return copy.deepcopy(vanilla).double(), copy.deepcopy(unlearned).double(), tokenizer


def _ids(tokenizer, n=3):
    chats = as_chat(load_concept("harry_potter").questions[:n])
    text = [tokenizer.apply_chat_template(c, add_generation_prompt=True, tokenize=False) for c in chats]
    return chats, [tokenizer(t, add_special_tokens=False)["input_ids"] for t in text]


@pytest.fixture(scope="module")
def swept(models):
    vanilla, unlearned, tokenizer = models
    chats, _ = _ids(tokenizer)
    before = state(vanilla), state(unlearned)
    result = krs.sweep(vanilla, unlearned, chats, windows=windows.of(WINDOWS), n_tokens=8, progress=False)
    assert same_state(vanilla, before[0])
    assert same_state(unlearned, before[1])
    return result


@pytest.fixture(scope="module")
def swept_exactly(exact):
    vanilla, unlearned, tokenizer = exact
    chats, _ = _ids(tokenizer)
    return krs.sweep(vanilla, unlearned, chats, windows=windows.of(WINDOWS), n_tokens=8, progress=False)


def test_a_few_windows_equal_hooks_by_hand(exact, swept_exactly):
    vanilla, unlearned, tokenizer = exact
    _, ids = _ids(tokenizer)
    expected = by_hand.sweep(vanilla, unlearned, ids, SETTINGS, WINDOWS, n_tokens=8, cached=True)
    assert_same(swept_exactly.krs.to_numpy().T, expected)
    assert np.isfinite(expected).all()
    assert len(np.unique(expected.round(4))) == expected.size


def test_in_fp32_it_rounds_as_the_plain_engine_does(models, swept, swept_exactly):
    vanilla, unlearned, tokenizer = models
    chats, _ = _ids(tokenizer)
    assert swept.answers == swept_exactly.answers
    options = {"windows": windows.of(WINDOWS), "n_tokens": 8, "progress": False, "answers": swept.answers}
    plain = krs.sweep(vanilla, unlearned, chats, engine="plain", **options)
    assert_rounds_alike(swept.krs, swept_exactly.krs, [plain.krs])


def test_a_prompt_alone_gives_the_losses_it_has_in_the_batch(exact, swept_exactly):
    vanilla, unlearned, tokenizer = exact
    chats, _ = _ids(tokenizer)
    alone = krs.sweep(vanilla, unlearned, chats[1:2], windows=windows.of(WINDOWS), n_tokens=8, progress=False)
    n = int(alone.losses.mask.sum())
    assert_same(alone.losses.restored[:, 0], swept_exactly.losses.restored[:, 1, :n])


def test_the_tokenizers_padding_side_does_not_matter(exact, swept_exactly):
    vanilla, unlearned, tokenizer = exact
    results = []
    for side in ("left", "right"):
        other = copy.deepcopy(tokenizer)
        other.padding_side = side
        chats, _ = _ids(other)
        results.append(krs.sweep(
            vanilla, unlearned, chats, tokenizer=other, settings="attn_out", windows=windows.of(WINDOWS[-1:]),
            n_tokens=8, progress=False,
        ))  # fmt: skip
    np.testing.assert_array_equal(results[0].losses.restored, results[1].losses.restored)
    assert_same(results[0].krs.iloc[0, 0], swept_exactly.krs["attn_out"].iloc[-1])


def test_the_self_check_passes_on_every_layer(models):
    found = self_check(models[0], every_layer=True)
    assert found.n_layers == 30
    assert found.noop == 0.0


def test_provenance_traces_the_result(models, swept):
    made = swept.provenance
    assert made["engine"] == "wavefront"
    assert "engine_note" not in made
    assert made["vanilla"]["dtype"] == "float32"
    assert made["vanilla"]["identity"]["weights"] != made["unlearned"]["identity"]["weights"]
    assert made["versions"]["torch"] == torch.__version__
    assert swept.answers[0].startswith("The Harry Potter books are")


def test_restoring_everything_in_lockstep_speaks_the_vanilla_answer(models):
    vanilla, unlearned, tokenizer = models
    chats, _ = _ids(tokenizer, 2)
    everything = [(MLP_COEF + ATTN_OUT).at(*range(30)), VALUE_VECTORS.at(*range(30))]
    before = state(unlearned)
    said = [
        krs.generate(vanilla, None, chats, n_tokens=8, tokenizer=tokenizer, progress=False),
        krs.generate(vanilla, unlearned, chats, restore=everything, n_tokens=8, tokenizer=tokenizer, progress=False),
    ]
    assert list(said[0]) == list(said[1])
    assert same_state(unlearned, before)


def test_our_greedy_answers_are_transformers_greedy_answers(models):
    vanilla, _, tokenizer = models
    chats, ids = _ids(tokenizer, 3)
    said = krs.generate(vanilla, None, chats, n_tokens=12, tokenizer=tokenizer, progress=False)
    for prompt, ours in zip(ids, said.token_ids, strict=True):
        given = torch.tensor([prompt])
        theirs = vanilla.generate(given, attention_mask=torch.ones_like(given), max_new_tokens=12, do_sample=False)
        assert tuple(theirs[0, len(prompt) :].tolist()) == ours


@pytest.mark.filterwarnings("ignore:.*answers are empty")  # the one that is given is made of special tokens
def test_one_column_of_one_layer_makes_another_checkpoint(smollm2, tmp_path):
    vanilla, _ = smollm2
    unlearned = copy.deepcopy(vanilla)
    first, second = (unlearned.model.layers[layer].mlp.down_proj.weight.data for layer in (26, 3))
    options = {"settings": "attn_out", "windows": windows.of([[29]]), "answers": [[7, 8]], "progress": False}
    kept = first[:, 878].clone()
    first[:, 878] += 0.5
    krs.sweep(vanilla, unlearned, [[5, 6]], checkpoint=tmp_path / "part.krs", **options)
    first[:, 878] = kept
    second[:, 500] += 0.5
    with pytest.raises(krs.KrsError, match=r"holds another sweep. What differs: the unlearned model \(weights\)"):
        krs.sweep(vanilla, unlearned, [[5, 6]], checkpoint=tmp_path / "part.krs", **options)


@pytest.mark.long
def test_every_byte_of_both_models_costs_less_than_a_twentieth_of_a_small_sweep(models):
    """Of processor time. The demo's sweep has ten prompts, ten times the windows and answers of thirty tokens."""
    vanilla, unlearned, tokenizer = models
    taken = []
    for _ in range(3):
        start = time.process_time()
        identity(vanilla)
        identity(unlearned)
        taken.append(time.process_time() - start)
    start = time.process_time()
    asked = ["Hogwarts is a", "Harry Potter's best friends are"]
    krs.sweep(vanilla, unlearned, asked, tokenizer=tokenizer, windows=windows.of(WINDOWS), n_tokens=10, progress=False)
    assert min(taken) < 0.05 * (time.process_time() - start)
