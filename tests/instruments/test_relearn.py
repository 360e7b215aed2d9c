import copy
from dataclasses import replace

import numpy as np
import torch

from krs.generation.batching import neighbours_matter
from krs.instruments import Case, instrument
from krs.instruments.learning import halves
from krs.instruments.relearn import Relearn, RelearnSame
from tests.hooks.test_rope import LONG
from tests.instruments.case import FACTS, logprobs, sequence, tiny_case
from tests.noise import assert_same
from tests.tiny import exact_pair, same_state, state


def _by_hand(case: Case, teach: list[int], test: list[int], steps: int, rate: float) -> np.ndarray:
    """NLL of `test` before and after each step on `teach`, one fact a forward, with torch's own AdamW."""
    student = copy.deepcopy(case.unlearned)
    optimiser = torch.optim.AdamW(student.parameters(), lr=rate, weight_decay=0.0)
    seen = []
    for step in range(steps + 1):
        seen.append([-float(logprobs(student, *sequence(case, FACTS[i])).mean()) for i in test])
        if step < steps:
            losses = []
            for i in teach:
                ids, start = sequence(case, FACTS[i])
                logits = student(torch.tensor([ids])).logits[0, start - 1 : -1]
                losses.append(torch.nn.functional.cross_entropy(logits, torch.tensor(ids[start:]), reduction="none"))
            torch.cat(losses).mean().backward()
            optimiser.step()
            optimiser.zero_grad()
    return np.array(seen)


def test_held_out_facts_are_those_of_a_loop_by_hand():
    case = tiny_case()
    before = state(case.unlearned)
    found = Relearn(steps=3, learning_rate=1e-2).measure(case)
    parts = [list(p) for p in halves(len(FACTS), 0)]
    for teach, test in (parts, parts[::-1]):
        nll = _by_hand(case, teach, test, 3, 1e-2)
        assert_same(found.values[test], (nll[0] - nll[-1]) / nll[0])
    assert same_state(case.unlearned, before)


def test_facts_that_change_with_those_beside_them_are_taught_each_by_itself():
    pairs = exact_pair("llama", **LONG)
    case = replace(tiny_case(), vanilla=pairs[0], unlearned=pairs[1])
    assert neighbours_matter(pairs[1], case.target.batch.tokens)
    found = RelearnSame(steps=2, learning_rate=1e-2).measure(case)
    nll = _by_hand(case, [0, 1, 2, 3], [0, 1, 2, 3], 2, 1e-2)
    assert_same(found.curves["nll"].target.to_numpy(), nll.mean(axis=1))


def test_steps_to_half_recovery_lie_between_the_steps_around_it():
    case = tiny_case()
    found = RelearnSame(steps=6, learning_rate=5e-2).measure(case)
    nll = _by_hand(case, [0, 1, 2, 3], [0, 1, 2, 3], 6, 5e-2)
    for i, value in enumerate(found.values):
        below = np.flatnonzero(nll[:, i] <= nll[0, i] / 2)
        assert below[0] - 1 < value <= below[0] if len(below) else value == 7


def test_unrelated_text_is_taught_and_the_target_is_looked_at():
    found = instrument("relearn_unrelated").measure(tiny_case())
    assert len(found.values) == len(FACTS)
    assert list(found.curves["nll"].index) == [0, 1, 2, 3, 4]


def test_what_the_caller_switched_off_is_no_matter():
    with torch.inference_mode():
        inside = instrument("relearn").read(tiny_case())
    assert_same(inside.values, instrument("relearn").read(tiny_case()).values)
