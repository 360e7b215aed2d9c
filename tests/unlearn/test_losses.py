import math

import pytest
import torch

from krs.unlearn.losses import IGNORED, dpo, kl_to_reference, live_tokens, npo, simnpo, token_logprobs
from tests.noise import assert_same, float64_throughout

pytestmark = pytest.mark.usefixtures("wide")


@pytest.fixture
def wide():
    """In float64, which the losses would take to float32."""
    torch.set_default_dtype(torch.float64)
    with float64_throughout():
        yield
    torch.set_default_dtype(torch.float32)


def _case(seed=0):
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 5, 7, generator=g)
    labels = torch.tensor([[IGNORED, 3, 1, 4, IGNORED], [IGNORED, IGNORED, 2, 6, 5]])
    return logits, labels


def test_token_logprobs_are_of_the_next_live_token():
    logits, labels = _case()
    found = token_logprobs(logits, labels)
    plain = torch.log_softmax(logits, -1)
    assert found[0, 0] == plain[0, 0, 3]
    assert found[1, 3] == plain[1, 3, 5]
    assert found[0, 3] == 0
    assert found[1, 0] == 0
    assert live_tokens(labels).sum() == 6


def test_their_sum_is_torchs_cross_entropy():
    logits, labels = _case()
    nll = torch.nn.functional.cross_entropy(
        logits[:, :-1].reshape(-1, 7), labels[:, 1:].reshape(-1), ignore_index=IGNORED, reduction="sum"
    )
    assert_same(-token_logprobs(logits, labels).sum(), nll)


@pytest.mark.parametrize("beta", [0.05, 0.1, 1.0])
def test_npo_at_the_reference_is_two_ln_two_over_beta(beta):
    x = torch.tensor([-3.0, -40.0])
    assert_same(npo(x, x, beta), torch.full((2,), 2 / beta * math.log(2)))


def test_npo_has_at_the_reference_the_gradient_of_ascent_on_the_nll():
    logits, labels = _case()
    a, b = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    reference = token_logprobs(logits, labels).sum(-1)
    npo(token_logprobs(a, labels).sum(-1), reference, 0.1).sum().backward()
    token_logprobs(b, labels).sum().backward()
    assert_same(a.grad, b.grad)


def test_npo_fades_once_a_sequence_is_unlikely():
    x = torch.tensor([-200.0], requires_grad=True)
    npo(x, torch.tensor([-3.0]), 0.1).sum().backward()
    assert 0 <= x.grad.item() < 1e-6


def test_kl_is_zero_at_the_reference_and_counts_live_tokens_only():
    logits, labels = _case()
    assert kl_to_reference(logits, logits, labels).abs().max() < 1e-6
    other = _case(1)[0]
    found = kl_to_reference(logits, other, labels)
    p = torch.softmax(other[1, 3], -1)
    expected = (p * (p.log() - torch.log_softmax(logits[1, 3], -1))).sum()
    assert_same(found[1, 3], expected)
    assert found[0, 3] == 0
    assert (found >= 0).all()


@pytest.mark.parametrize("beta", [0.05, 0.1, 1.0])
def test_dpo_at_the_reference_is_two_ln_two_over_beta_and_pulls_both_ways(beta):
    w, u = (torch.tensor(x, requires_grad=True) for x in ([-3.0, -40.0], [-5.0, -1.0]))
    loss = dpo(w, w.detach(), u, u.detach(), beta)
    assert_same(loss, torch.full((2,), 2 / beta * math.log(2)))
    loss.sum().backward()
    assert_same(w.grad, torch.full((2,), -1.0))
    assert_same(u.grad, torch.full((2,), 1.0))


def test_dpo_without_a_wanted_side_is_npo():
    x, ref = torch.tensor([-3.0, -40.0]), torch.tensor([-2.0, -50.0])
    zero = torch.zeros(2)
    assert_same(dpo(zero, zero, x, ref, 0.1), npo(x, ref, 0.1))


def test_simnpo_is_npo_on_means_with_a_margin():
    x, n = torch.tensor([-6.0, -40.0]), torch.tensor([2.0, 8.0])
    assert_same(simnpo(x, n, 2.5, 0.0), npo(x / n, torch.zeros(2), 2.5))
    margin = -(2 / 2.5) * torch.log(torch.sigmoid(-2.5 * x / n - 0.5))
    assert_same(simnpo(x, n, 2.5, 0.5), margin)
