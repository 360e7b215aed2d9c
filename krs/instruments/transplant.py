"""What suffices to unlearn: pieces of the unlearned model put into the vanilla one."""

from __future__ import annotations

import numpy as np

from krs.hooks.anatomy import anatomy
from krs.instruments.case import Case
from krs.instruments.instrument import Instrument, register
from krs.instruments.reading import Reading
from krs.restore import sweep, windows

_ADDED = 0.05


@register("transplant")
class Transplant(Instrument):
    """Of the NLL that unlearning has added, the share that its coefficients and attention outputs bring along.

    They are put into the vanilla model a window at a time, but for windows with the last layer; the number is that of
    the window that brings most. A model that keeps an answer and hides it late brings little along from the layers
    before.
    """

    unit, knows = "share of added NLL", "low"
    nulls = ("never_knew",)
    passes = 60.0

    def lacks(self, case: Case) -> str | None:
        """A window that ends before the last layer, beside what all instruments may lack."""
        n_layers = anatomy(case.vanilla).n_layers
        none = all(window.layers[-1] == n_layers - 1 for window in windows.centred(5).over(n_layers))
        return super().lacks(case) or ("needs a window of five layers before the last layer" if none else None)

    def measure(self, case: Case) -> Reading:
        """NaN for a fact whose NLL unlearning has not raised by 0.05 nats a token."""
        result = sweep(
            case.vanilla,
            case.unlearned,
            case.target.prompts,
            answers=case.target.answers,
            tokenizer=case.target.wording.tokenizer,
            n_tokens=case.target.n_tokens,
            settings=["mlp_coef+attn_out", "mlp_coef", "attn_out", "value_vectors", "weights"],
            direction="transplant",
            measures="answer_logprob",
            progress=False,
        )
        kept, mask = result.losses.measured["answer_logprob"], result.losses.mask
        per_fact = [np.where(mask, v, 0).sum(-1) / mask.sum(-1) for v in (kept.restored, kept.recipient, kept.donor)]
        restored, own, donor = per_fact
        inner = [i for i, window in enumerate(result.plan.windows) if window.layers[-1] < result.plan.n_layers - 1]
        both = restored[inner]  # the first setting's windows come first
        best = both[both.mean(axis=1).argmin()]
        added = own - donor
        values = np.where(added > _ADDED, (own - best) / np.where(added > _ADDED, added, 1), np.nan)
        silent = int((added <= _ADDED).sum())
        notes = (f"{silent} of {len(own)} answers are as likely as before",) if silent else ()
        return self.reading(values, {"recovery": result.recovery("answer_logprob")}, notes)
