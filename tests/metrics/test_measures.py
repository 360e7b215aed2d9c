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
