"""Which weights made the difference, beside which weights changed: it describes, and says nothing about knowing."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np

from krs.errors import KrsWarning
from krs.instruments.case import Case
from krs.instruments.instrument import Instrument, register
from krs.instruments.reading import Reading
from krs.metrics import account
from krs.metrics.account_result import Account

_VALUES = "value_vectors"


@register("account")
class WeightAccount(Instrument):
    """The share of value vectors in what moved the logits at the right answers; it has no vote.

    Each weight's part of the logit MSE is an integral along the line between the models' weights (`krs.account`). A
    large share means that these weights did it, not that a fact is gone; hence nothing is read from it about knowing.
    """

    unit, knows = "share of the logit MSE", None
    nulls = ("unrelated",)
    passes = 30.0

    def measure(self, case: Case) -> Reading:
        """The share in each fact's account; NaN where value vectors are experts, or nothing has moved."""
        found = _account(case)
        owners = np.array([component for component, _ in found.parts_of])
        whole = found.parts.sum(axis=1)
        mine = found.parts[:, owners == _VALUES].sum(axis=1)
        known = (whole != 0) & bool((owners == _VALUES).any())
        values = np.where(known, mine / np.where(whole != 0, whole, 1), np.nan)
        table = found.frame.rename_axis(columns="layer")
        summed = found.by_component.to_frame("share").assign(**{"share of the change": found.share_of_change})
        notes = (*found.notes, f"the parts miss the whole by {found.error:.1g} of it")
        return self.reading(values, {"share by layer": table, "share by component": summed}, notes)

    def _read(self, case: Case, nulls: bool) -> Reading:
        """With the account of the unrelated facts, where one was made, beside the other columns."""
        found = super()._read(case, nulls)
        if nulls and case.unrelated is not None:
            others = _account(replace(case, target=case.unrelated)).by_component
            key = "share by component"
            return replace(found, curves=dict(found.curves) | {key: found.curves[key].assign(unrelated=others)})
        return found


def _account(case: Case) -> Account:
    """That of the target; kept for the case."""
    found = case.found.setdefault(case.unlearned, {})
    key = ("account", case.target)
    if key not in found:
        wording = case.target.wording
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "the parts of the", KrsWarning)  # it is in the notes, too
            found[key] = account(
                case.vanilla,
                case.unlearned,
                case.target.prompts,
                answers=case.target.answers,
                tokenizer=wording.tokenizer,
                n_tokens=case.target.n_tokens,
                progress=False,
            )
    kept: Account = found[key]
    return kept
