"""How soon a model relearns: on the same facts, on facts held out, and from unrelated text.

What a model only hides comes back when it is taught something else of the kind (arXiv 2410.08827); what it never knew
has to be taught. So the number that tells is the one on facts that were *not* taught again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import nn

from krs._typing import DataFrame
from krs.instruments.case import Asked, Case
from krs.instruments.instrument import Instrument, register
from krs.instruments.learning import OPEN, halves, steps
from krs.instruments.logprobs import answer_tokens
from krs.instruments.reading import Reading


@dataclass(frozen=True)
class _Relearning(Instrument):
    """What they have in common.

    Attributes:
        steps: of AdamW, each on all facts that are taught.
        learning_rate: the same for every model: recovery is compared at equal effort.
    """

    steps: int = 4
    learning_rate: float = 1e-5

    def lost(self, model: nn.Module, taught: Asked, asked: Asked) -> Float[np.ndarray, "step fact"]:
        """NLL of `asked` before the first step and after each."""
        walk = steps(model, taught, self.steps, self.learning_rate)
        return np.array([answer_tokens(student, asked.batch, "the relearning").nll() for student in walk])


@register("relearn")
class Relearn(_Relearning):
    """Half of the facts are taught again; the number is the share of the other half's NLL that goes. Then vice versa.

    The curve of the taught half has its steps to half recovery.
    """

    unit, knows = "share of NLL", "high"
    nulls = ("never_knew",)
    passes = 60.0

    def lacks(self, case: Case) -> str | None:
        """There have to be two facts to hold one out."""
        return super().lacks(case) or ("needs two facts or more" if len(case.target) < 2 else None)

    def measure(self, case: Case) -> Reading:
        """NaN for a fact that is answered openly (below 0.05 nats a token)."""
        asked = case.target
        held_out = np.full((self.steps + 1, len(asked)), np.nan)
        taught = held_out.copy()
        parts = halves(len(asked), case.seed)
        for teach, test in (parts, parts[::-1]):
            both = [*teach, *test]
            found = self.lost(case.unlearned, asked.only(teach), asked.only(both))
            taught[:, teach], held_out[:, test] = found[:, : len(teach)], found[:, len(teach) :]
        values, notes = _share(held_out)
        return self.reading(values, {"nll": _curve({"held out": held_out, "taught": taught})}, notes)


@register("relearn_unrelated")
class RelearnUnrelated(_Relearning):
    """The unrelated facts are taught; the number is the share of the target's NLL that goes."""

    unit, knows = "share of NLL", "high"
    needs = ("unrelated",)
    nulls = ("never_knew",)
    passes = 40.0

    def measure(self, case: Case) -> Reading:
        """NaN for a fact that is answered openly."""
        assert case.unrelated is not None
        found = self.lost(case.unlearned, case.unrelated, case.target)
        values, notes = _share(found)
        return self.reading(values, {"nll": _curve({"target": found})}, notes)


@register("relearn_same")
class RelearnSame(_Relearning):
    """The target facts are taught again: steps until half of each fact's NLL is gone, interpolated.

    It says how near the facts lie, and a model that never knew learns them too: compare it with `never_knew`.
    """

    unit, knows = "steps", "low"
    nulls = ("never_knew",)
    passes = 40.0

    def measure(self, case: Case) -> Reading:
        """One more than all steps for a fact that is not half way by then; NaN for one answered openly."""
        found = self.lost(case.unlearned, case.target, case.target)
        values = [_half(row, self.steps) for row in found.T]
        return self.reading(values, {"nll": _curve({"target": found})}, _open_notes(found))


def _half(nll: Float[np.ndarray, " step"], last: int) -> float:
    if nll[0] < OPEN:
        return float("nan")
    below = np.flatnonzero(nll <= nll[0] / 2)
    if not len(below):
        return last + 1.0
    k = int(below[0])
    return k - 1 + float((nll[k - 1] - nll[0] / 2) / (nll[k - 1] - nll[k]))


def _share(nll: Float[np.ndarray, "step fact"]) -> tuple[Float[np.ndarray, " fact"], tuple[str, ...]]:
    before = np.where(nll[0] < OPEN, np.nan, nll[0])
    return (before - nll[-1]) / before, _open_notes(nll)


def _open_notes(nll: Float[np.ndarray, "step fact"]) -> tuple[str, ...]:
    n = int((nll[0] < OPEN).sum())
    return (f"{n} of {nll.shape[1]} answers are given openly: there is nothing to relearn",) if n else ()


def _curve(found: dict[str, Any]) -> DataFrame:
    import pandas as pd

    return pd.DataFrame({name: np.mean(nll, axis=1) for name, nll in found.items()}).rename_axis("step")
