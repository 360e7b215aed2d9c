"""What krs declares is checked while the tests run: types, shapes, fields of dataclasses."""

import numpy as np
import pytest
import torch
from beartype.roar import BeartypeCallHintViolation
from jaxtyping import TypeCheckError

from krs.metrics import krs_score, logit_mse
from krs.restore.plan import Plan
from krs.restore.windows import centred
from krs.unlearn.sides import Side
from tests import type_checks


def test_a_wrong_type_is_found():
    with pytest.raises(BeartypeCallHintViolation, match="centred"):
        centred("5")
    with pytest.raises(BeartypeCallHintViolation, match="n_layers"):
        Plan.make(n_layers="4")


def test_axes_of_one_name_have_one_length_in_arguments_results_and_dataclasses():
    with pytest.raises(TypeCheckError, match="vocab"):
        logit_mse(torch.zeros(2, 5), torch.zeros(2, 6))
    with pytest.raises(TypeCheckError, match="token"):
        krs_score(np.zeros((2, 3)), np.zeros((2, 4)))
    with pytest.raises(TypeCheckError, match="pos"):
        Side(logits=torch.zeros(1, 5, 7), labels=torch.zeros(1, 4, dtype=torch.long), n_tokens=1, n_rows=1)


def test_a_user_meets_no_such_check(as_a_user):
    with pytest.raises(RuntimeError, match="must match"):
        logit_mse(torch.zeros(2, 5), torch.zeros(2, 6))


class _Plain:
    def whole(self, number: int, *others: int, by: int = 2) -> int:
        return number * by + len(others) if others else number * by


class _Further(_Plain):
    def whole(self, number: int, *others: int, by: int = 3) -> int:
        return super().whole(number, *others, by=by)  # a closure, so its code cannot be exchanged


@pytest.mark.parametrize("kind", [_Plain, _Further])
def test_a_function_is_itself_before_with_and_without_its_checks(kind):
    whole = type_checks._check(kind.whole)
    expected = kind().whole(4, 0), kind().whole(4, by=5)
    try:
        for checked in (True, False, True):
            type_checks.switch(checked)
            for _ in range(2):
                assert (whole(kind(), 4, 0), whole(kind(), 4, by=5)) == expected
            if checked:
                with pytest.raises(BeartypeCallHintViolation, match="number"):
                    whole(kind(), "4")
            else:
                assert whole(kind(), "4", by=2) == "44"
    finally:
        type_checks.switch(True)
    assert whole.__name__ == "whole"
