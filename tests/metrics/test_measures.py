import os
import subprocess
import sys
from functools import partial

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from krs.errors import KrsError
from krs.metrics.measures import (
    ANSWER_LOGPROB,
    KL,
    LOGIT_MSE,
    RANK,
    REVERSE_KL,
    TOP1,
    Measure,
    ReferenceTokens,
    ScoredTokens,
    measure,
    measures,
)


@pytest.fixture
def tokens():
    logits, theirs = torch.randn(4, 7, dtype=torch.float64), torch.randn(4, 7, dtype=torch.float64)
    return ScoredTokens(logits, ReferenceTokens(theirs, torch.tensor([1, 0, 6, 2])))


def test_the_built_in_measures_against_torch(tokens):
    ours, theirs = tokens.logits, tokens.reference_logits
    p, q = F.log_softmax(theirs, -1), F.log_softmax(ours, -1)
    torch.testing.assert_close(KL(tokens), F.kl_div(q, p, log_target=True, reduction="none").sum(-1))
    torch.testing.assert_close(REVERSE_KL(tokens), F.kl_div(p, q, log_target=True, reduction="none").sum(-1))
    torch.testing.assert_close(LOGIT_MSE(tokens), F.mse_loss(ours, theirs, reduction="none").mean(-1))
    torch.testing.assert_close(ANSWER_LOGPROB(tokens), -F.cross_entropy(ours, tokens.target_ids, reduction="none"))
    order = ours.argsort(-1, descending=True)
    expected = [order[i].tolist().index(int(theirs[i].argmax())) for i in range(4)]
    assert RANK(tokens).tolist() == expected
    assert TOP1(tokens).tolist() == [float(rank == 0) for rank in expected]


def test_a_function_is_a_measure(tokens):
    def margin(logits, reference_logits, target_ids):
        return logits.max(-1).values - logits.gather(-1, target_ids[:, None])[:, 0]

    found = measure(margin)
    assert found.name == "margin"
    assert found(tokens).shape == (4,)
    assert [m.name for m in measures(["kl", margin])] == ["logit_mse", "kl", "margin"]


def _top(k):
    def top(logits, reference_logits, target_ids):
        return logits.topk(k).values.sum(-1)

    return top


def test_functions_that_compute_otherwise_are_told_apart():
    """By what they close over, their defaults, and partial arguments; a function in a function is no address."""

    def scaled(logits, reference_logits, target_ids, by=1):
        return by * logits.max(-1).values

    def twice(logits, reference_logits, target_ids):
        return scaled(logits, reference_logits, target_ids, 2)

    class Above:
        def __init__(self, floor):
            self.floor = floor

        def __call__(self, logits, reference_logits, target_ids):
            return (logits > self.floor).sum(-1)

    rows = torch.arange(3)

    def of(table):
        return lambda tokens: tokens.logits[:, table].sum(-1)

    apart = [
        (_top(1), _top(5)),
        (partial(scaled, by=1), partial(scaled, by=2)),
        (Above(0.5), Above(0.6)),
        (Measure("mine", "Mine", of(rows)), Measure("mine", "Mine", of(rows + 1))),
    ]
    for one, other in apart:
        assert measure(one).identity != measure(other).identity
        assert measure(one).identity == measure(one).identity
    assert measure(_top(1)).identity == measure(_top(1)).identity
    before = measure(twice).identity
    scaled.__defaults__ = (3,)
    assert measure(twice).identity != before
    assert [m.identity for m in measures(["kl", "rank"])] == ["logit_mse", "kl", "rank"]


_SCRIPT = """
from krs.metrics.code import code_digest

WORDS, BY = frozenset({"a", "b", "c", "d"}), 2

def mine(logits, reference_logits, target_ids):
    rows = [max(map(lambda x: BY * x, row)) for row in logits.tolist() if "a" in {"a", "b", "c"}]
    return len(WORDS) * logits.new_tensor(rows)

print(code_digest(mine))
"""


def test_a_function_is_the_same_in_another_process():
    said = {
        subprocess.run(
            [sys.executable, "-c", _SCRIPT],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(said) == 1


def test_a_measure_that_writes_into_what_it_is_given_is_refused(tokens):
    def less_the_largest(logits, reference_logits, target_ids):
        logits -= logits.max(-1, keepdim=True).values
        return logits.sum(-1)

    def of_logprobs(tokens):
        return tokens.reference.logprobs.mul_(2).sum(-1)

    tokens.reference.logprobs  # noqa: B018 - made for an earlier measure
    for given in (less_the_largest, Measure("mine", "Mine", of_logprobs)):
        with pytest.raises(KrsError, match=r"writes into the logits that it is given.*logits = logits.clone\(\)"):
            measure(given)(tokens)


def test_what_is_no_measure(tokens, as_a_user):
    with pytest.raises(KrsError, match="unknown measure 'kI': known are answer_logprob"):
        measure("kI")
    with pytest.raises(KrsError, match="not int"):
        measure(3)
    with pytest.raises(KrsError, match="cannot be called '<lambda>'"):
        measure(lambda a, b, c: a)

    def scalar(logits, reference_logits, target_ids):
        return logits.mean()

    with pytest.raises(KrsError, match=r"'scalar' has to return a tensor of \[4\]"):
        measure(scalar)(tokens)
    with pytest.raises(KrsError, match="names 'scalar' twice"):
        measures([scalar, scalar])
