"""The paper's score as an instrument: how much of the vanilla logits returns with vanilla activations.

Restored activations bring the vanilla model's knowledge with them, so a model that never knew scores high as well: read
it beside `never_knew`.
"""

from __future__ import annotations

import numpy as np

from krs.instruments.case import Case
from krs.instruments.instrument import Instrument, register
from krs.instruments.reading import Reading
from krs.restore import sweep

_BOTH = "mlp_coef+attn_out"


@register("krs")
class KRS(Instrument):
    """The Knowledge Recovery Score of coefficients and attention outputs together, at its best window.

    Settings, windows and scored tokens are the paper's, but for the answers, which are the right ones.
    """

    unit, knows = "KRS", "high"
    nulls = ("never_knew", "unrelated", "random_effect")
    passes = 60.0
    version = 2

    def measure(self, case: Case) -> Reading:
        """Each fact's own score at the window that is best over all; the curves are those of all four settings."""
        result = sweep(
            case.vanilla,
            case.unlearned,
            case.target.prompts,
            answers=case.target.answers,
            tokenizer=case.target.wording.tokenizer,
            n_tokens=case.target.n_tokens,
            progress=False,
        )
        best = result.best().loc[_BOTH, "window"]
        rows = result.to_frame(per_prompt=True)
        mine = rows[(rows.setting == _BOTH) & (rows.window == best)].sort_values("prompt")
        return self.reading(np.asarray(mine.krs, dtype=np.float64), {"krs": result.krs}, tuple(result.notes))
