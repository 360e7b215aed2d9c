import numpy as np
import pytest
import torch
from torch.nn.functional import linear

from krs.metrics import logits
from krs.metrics.logits import HeadDistance, logit_mse, logit_power
from tests.noise import EXACT, assert_rounds_alike


def _heads(vocabulary=700, width=24, apart=0.1, dtype=torch.float32):
    torch.manual_seed(0)
    theirs = torch.randn(vocabulary, width)
    ours = theirs + apart * torch.randn(vocabulary, width)
    h = torch.randn(5, width)
    return ours.to(dtype), theirs.to(dtype), (h + apart * torch.randn(3, 5, width)).to(dtype), h.to(dtype)


def _exact(ours, theirs, h1, h0):
    return ((linear(h1.double(), ours.double()) - linear(h0.double(), theirs.double())) ** 2).mean(-1).numpy()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("apart", [1.0, 1e-2, 1e-4, 1e-6])
def test_equals_explicit_logits_also_when_the_models_are_nearly_equal(apart, dtype, monkeypatch):
    ours, theirs, h1, h0 = _heads(apart=apart, dtype=dtype)
    distance, wide = HeadDistance(ours, theirs), HeadDistance(ours.double(), theirs.double())
    exact = _exact(ours, theirs, h1, h0)
    power = logit_power(linear(h0.double(), theirs.double())).numpy()
    np.testing.assert_allclose(wide.mse(h1.double(), h0.double()), exact, rtol=EXACT)
    np.testing.assert_allclose(wide.power(h0.double()), power, rtol=EXACT)
    if dtype != torch.float64:
        ways = [distance]
        for rows in (100, 350, 700):
            monkeypatch.setattr(logits, "_ROWS", rows)
            ways.append(HeadDistance(ours, theirs))
        found, *others = (way.mse(h1, h0).numpy() / exact for way in ways)
        assert_rounds_alike(found, np.ones_like(exact), others)
        found, *others = (way.power(h0).numpy() / power for way in ways)
        assert_rounds_alike(found, np.ones_like(power), others)


def test_equal_models_are_exactly_zero_apart():
    _, theirs, _, h0 = _heads()
    assert HeadDistance(theirs, theirs.clone()).mse(h0, h0.clone()).abs().max() == 0


@pytest.mark.parametrize("biases", [(True, True), (True, False), (False, True)])
def test_biases_and_scales(biases):
    ours, theirs, h1, h0 = _heads(dtype=torch.float64)
    b1, b0 = (torch.randn(len(ours), dtype=torch.float64) if b else None for b in biases)
    distance = HeadDistance(ours, theirs, b1, b0, our_scale=0.25, their_scale=0.5)
    exact = logit_mse(0.25 * linear(h1, ours, b1).double(), (0.5 * linear(h0, theirs, b0).double()).expand(3, 5, -1))
    np.testing.assert_allclose(distance.mse(h1, h0), exact, rtol=EXACT)
