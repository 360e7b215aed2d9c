import math

import numpy as np
import pytest
import torch

from krs import KrsError
from krs.metrics import krs_score, logit_mse, logit_power

MASK = np.array([[True, True, True], [True, False, False]])


def test_eq_3_is_the_ratio_of_the_means_over_scored_tokens():
    loss = np.array([[1.0, 2.0, 3.0], [4.0, np.nan, np.nan]])
    base = np.array([[2.0, 4.0, 6.0], [8.0, np.nan, np.nan]])
    assert krs_score(loss, base, MASK).value == 0.5
    base[1, 0] = 28
    assert krs_score(loss, base, MASK).value == 0.75


def test_paper_code_is_the_mean_of_each_prompts_ratio():
    loss = np.array([[1.0, 2.0, 3.0], [4.0, np.nan, np.nan]])
    base = np.array([[2.0, 4.0, 6.0], [16.0, np.nan, np.nan]])
    assert krs_score(loss, base, MASK, scoring="paper-code").value == pytest.approx((0.5 + 0.75) / 2)


def test_it_can_be_negative_and_is_not_clamped():
    assert krs_score(np.full((1, 1), 3.0), np.full((1, 1), 1.0)).value == -2


@pytest.mark.parametrize("scoring", ["next-token", "paper-code"])
def test_a_zero_denominator_is_nan_with_the_reason(scoring):
    score = krs_score(np.zeros((2, 2)), np.zeros((2, 2)), scoring=scoring)
    assert math.isnan(score.value)
    assert "nothing was unlearned" in score.reason


def test_rounding_noise_counts_as_zero_by_the_models_dtype():
    power, noise = np.full((1, 1), 100.0), np.full((1, 1), 1e-9)
    assert math.isnan(krs_score(noise, noise, power=power).value)
    assert krs_score(noise, noise).value == 0
    real = np.full((1, 1), 1e-3)
    assert krs_score(real, real, power=power).value == 0
    assert math.isnan(krs_score(real, real, power=power, dtype="bfloat16").value)


def test_what_was_not_computed_is_nan_and_says_so():
    score = krs_score(np.full((1, 2), np.nan), np.ones((1, 2)))
    assert math.isnan(score.value)
    assert "not computed" in score.reason


def test_an_unknown_scoring_is_refused(as_a_user):
    with pytest.raises(KrsError, match="choose one of next-token, paper-code"):
        krs_score(np.ones((1, 1)), np.ones((1, 1)), scoring="eq3")


def test_mse_is_taken_in_fp32_or_better():
    a = torch.randn(3, 500).to(torch.bfloat16)
    b = a + torch.randn(3, 500).to(torch.bfloat16) * 0.01
    expected = ((a.double() - b.double()) ** 2).mean(-1)
    rounded = 4 * torch.finfo(torch.float32).eps  # a difference, its square: each value is rounded twice
    torch.testing.assert_close(logit_mse(a, b), expected, rtol=rounded, atol=0)
    torch.testing.assert_close(logit_power(a), (a.double() ** 2).mean(-1), rtol=rounded, atol=0)
