"""Parts of prompts, positions for each prompt, and the last layers."""

import numpy as np
import pytest
import torch

import krs
from krs import ATTN_OUT, MLP_COEF, RESID, KrsError, windows
from tests import by_hand
from tests.noise import assert_same
from tests.tiny import exact_pair

PROMPTS = [[5, 9, 11], [7, 3, 22, 8, 40, 2], [13, 4]]
OPTIONS = {
    "settings": [MLP_COEF, ATTN_OUT, RESID],
    "windows": windows.of([[1], [2, 3]]),
    "n_tokens": 5,
    "progress": False,
}


@pytest.fixture(scope="module")
def models():
    return exact_pair("llama")


def _both(models, positions, **options):
    ours, twin = (
        krs.sweep(*models, PROMPTS, positions=positions, engine=engine, **(OPTIONS | options))
        for engine in ("wavefront", "plain")
    )
    assert_same(ours.krs.to_numpy(), twin.krs.to_numpy())
    return ours


@pytest.mark.parametrize("part", ["prompt", "answer", "scored", "last_prompt"])
def test_a_named_part_is_its_positions_prompt_by_prompt(models, part):
    answers = [by_hand.greedy(models[0], prompt, 5) for prompt in PROMPTS]
    ends = [(len(p), len(p) + len(a) - 1) for p, a in zip(PROMPTS, answers, strict=True)]
    meant = {
        "prompt": [list(range(p)) for p, _ in ends],
        "answer": [list(range(p, end)) for p, end in ends],
        "scored": [list(range(p - 1, end)) for p, end in ends],
        "last_prompt": [[p - 1] for p, _ in ends],
    }[part]
    if not all(meant):
        pytest.skip("a random answer of a single token has no positions of its own")
    assert_same(_both(models, part).krs.to_numpy(), _both(models, meant).krs.to_numpy())


def test_positions_for_each_prompt_are_those_of_its_own(models):
    together = _both(models, [[0], [2, -1], [1]])
    for i, positions in enumerate([[0], [2, -1], [1]]):
        alone = krs.sweep(*models, [PROMPTS[i]], positions=positions, **OPTIONS)
        n = int(alone.losses.mask.sum())
        assert_same(together.losses.restored[:, i, :n], alone.losses.restored[:, 0, :n])


@pytest.mark.parametrize("given", [np.int64(1), {1}, np.array([1]), torch.tensor([[1], [1], [1]]), (i for i in [1])])
def test_whole_numbers_of_any_kind(models, given, as_a_user):
    found = krs.sweep(*models, PROMPTS, positions=given, **OPTIONS)
    assert found.plan.positions in ((1,), ((1,), (1,), (1,)))
    assert_same(found.krs.to_numpy(), krs.sweep(*models, PROMPTS, positions=[1], **OPTIONS).krs.to_numpy())


def test_they_are_saved_and_read(models, tmp_path):
    result = krs.sweep(*models, PROMPTS, positions=[[0], [2, -1], [1]], **OPTIONS)
    again = krs.load_result(result.save(tmp_path / "p.krs"))
    assert again.plan == result.plan
    assert again.plan.positions == ((0,), (2, -1), (1,))


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        ("subjekt", "positions='subjekt': give None \\(all\\), 'prompt', 'answer', 'scored', 'last_prompt'"),
        ([[0], [1]], "positions= has 2 lists for 3 prompts"),
        ([[0], [], [1]], "an empty list for a prompt"),
        ([0.5], "positions are whole numbers"),
        (1.5, "positions is a float"),
        ([True, False, True], r"positions= has \[True, False, True\]: .* Of a mask, give those at which it is true"),
        ([[True, False], [True], [False]], "Of a mask, give those"),
        (torch.tensor([True, False]), "Of a mask, give those"),
        ({0: [1], 1: [0]}, "positions is a dict: pass a list of positions"),
        ([[0], [9], [99]], "position 99 is out of range for prompt 2"),
    ],
)
def test_positions_that_mean_nothing(models, positions, message, as_a_user):
    with pytest.raises(KrsError, match=message):
        krs.sweep(*models, PROMPTS, positions=positions, **OPTIONS)


def test_the_last_layers(models):
    result = _both(models, None, windows=windows.last(2))
    assert list(result.krs.index) == ["last 2"]
    listed = krs.sweep(*models, PROMPTS, **(OPTIONS | {"windows": windows.of([[2, 3]])}))
    np.testing.assert_array_equal(result.losses.restored, listed.losses.restored)
    with pytest.raises(KrsError, match="there are no last 9 layers in a model of 4"):
        krs.sweep(*models, PROMPTS, **(OPTIONS | {"windows": windows.last(9)}))
    assert torch.isfinite(torch.tensor(result.krs.to_numpy())).all()
