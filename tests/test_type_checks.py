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
