import numpy as np
import pytest
import torch

from krs.instruments import Case, instrument
from krs.instruments.uds import UDS, InnerUDS, StateDrop, depth
from tests.instruments.case import FACTS, logprobs, sequence, tiny_case
from tests.noise import assert_same
from tests.tiny import same_state, state


def _states(model: torch.nn.Module, ids: list[int]) -> list[torch.Tensor]:
    """What each layer hands on."""
    kept: list[torch.Tensor] = []
    handles = [layer.register_forward_hook(lambda _, __, out: kept.append(out.clone())) for layer in model.model.layers]
    with torch.no_grad():
        model(torch.tensor([ids]))
    for handle in handles:
        handle.remove()
    return kept


def _drops(case: Case, donor: torch.nn.Module) -> np.ndarray:
    """By hand: one fact and one layer at a time, with torch's own hooks."""
    layers = case.vanilla.model.layers
    drops = np.zeros((len(layers), len(FACTS)))
    for i, fact in enumerate(FACTS):
        ids, start = sequence(case, fact)
        states = _states(donor, ids)
        own = logprobs(case.vanilla, ids, start).mean()
        for k, layer in enumerate(layers):

            def put(_, __, out, of_donor=states[k], start=start):
                out = out.clone()
                out[:, start - 1 : -1] = of_donor[:, start - 1 : -1]
                return out

            handle = layer.register_forward_hook(put)
            drops[k, i] = float(own - logprobs(case.vanilla, ids, start).mean())
            handle.remove()
    return drops


def test_the_depth_score_is_that_of_hooks_by_hand():
    case = tiny_case()
    before = state(case.vanilla), state(case.unlearned)
    d1, d2 = _drops(case, case.retain), _drops(case, case.unlearned)
    expected = []
    for a, b in zip(d1.T, d2.T, strict=True):
        counted = [(x, min(max(y / x, 0), 1)) for x, y in zip(a, b, strict=True) if x > 0.05]
        expected.append(sum(x * r for x, r in counted) / sum(x for x, _ in counted) if counted else np.nan)
    assert np.isfinite(expected).any()
    found = UDS(every=1, start=0.0).measure(case)
    assert_same(found.values, expected)
    assert_same(found.curves["drop"]["unlearned"], d2.mean(axis=1))
    assert_same(InnerUDS(every=1, start=0.0).measure(case).values, depth(d1[:-1], d2[:-1]))
    assert_same(StateDrop(every=1, start=0.0).measure(case).values, d2[:-1].mean(axis=0))
    assert same_state(case.vanilla, before[0])
    assert same_state(case.unlearned, before[1])


def test_the_vanilla_model_scores_0_and_the_retain_model_1():
    case = tiny_case()
    found = UDS(every=1, start=0.0).read(case)
    counts = np.isfinite(found.values)
    assert_same(found.nulls["same"][counts], np.zeros(counts.sum()))
    never = Case(case.vanilla, case.retain, case.target, retain=case.retain)
    assert_same(UDS(every=1, start=0.0).measure(never).values[counts], np.ones(counts.sum()))


def test_no_layer_that_counts_is_no_number():
    nothing = np.zeros((3, 2))
    assert np.isnan(depth(nothing, nothing + 1)).all()
    found = instrument("uds_inner").measure(tiny_case())
    assert np.isnan(found.values).all()  # of four layers the last alone is looked at
    assert "to 4 of 4 answers the retain model's states cost no layer more than 0.05 nats" in found.notes[0]


@pytest.mark.parametrize("name", ["uds", "uds_inner"])
def test_without_a_retain_model_it_does_not_apply(name):
    assert instrument(name).lacks(tiny_case(retain=False)) == "needs retain"
