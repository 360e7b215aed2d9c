"""Greedy answers, prompt by prompt what an argmax in a loop gives."""

import pytest
import torch

from krs.generation.greedy import greedy
from tests import by_hand
from tests.tiny import FAMILIES, build

PROMPTS = ((5, 9, 11), (7, 3, 22, 8, 40, 2), (13,), (4,), (5, 9, 11))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_batch_answers_as_its_prompts_do_alone_in_either_precision(name, dtype):
    model = build(name).to(dtype)
    alone = [tuple(by_hand.greedy(model, list(prompt), 4)) for prompt in PROMPTS]
    assert list(greedy(model, PROMPTS, 4, progress=False)) == alone
