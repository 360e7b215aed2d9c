"""Hidden states of the unlearned model put into the vanilla one: from which layer on is the answer missing?

The Unlearning Depth Score (arXiv 2605.24614): hidden states of a model that never knew, and of the unlearned one, take
the place of the vanilla model's own, layer by layer, at the positions that predict the answer, and the answer's
log-probability drops by `d1` and `d2`. The score is `sum(d1 * clip(d2 / d1, 0, 1)) / sum(d1)` over the layers with
`d1 > 0.05`: 0 for a model whose states say as much as the vanilla model's, 1 for one that is as empty as the retain
model.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from torch import nn

from krs._typing import DataFrame
from krs.hooks.anatomy import anatomy
from krs.instruments.case import Case
from krs.instruments.instrument import Instrument, register
from krs.instruments.reading import Reading
from krs.restore import patch_sweep, windows

FLOOR = 0.05
"""A layer counts where the retain model's states cost more than so many nats a token."""


@dataclass(frozen=True)
class _States(Instrument):
    """What they have in common.

    Attributes:
        every: each so many layers one is looked at, back from the last; 1 is all of them.
        start: the share of layers at the bottom that is left out: 0 is none. States that are put in low make the whole
            model above run again, and hardly differ yet in what they say of an answer.
    """

    every: int = 3
    start: float = 0.5

    def layers(self, case: Case) -> tuple[int, ...]:
        """Those that are looked at."""
        n_layers = anatomy(case.vanilla).n_layers
        return tuple(range(n_layers - 1, int(self.start * n_layers) - 1, -self.every))[::-1]


class _Depth(_States):
    unit, knows, bounds = "0 knows, 1 as the retain model", "low", (1.0, 0.0)
    needs = ("retain",)
    nulls = ("same",)
    passes = 6.0
    inner = False

    def measure(self, case: Case) -> Reading:
        """The score of each fact; NaN for one at which no layer counts."""
        assert case.retain is not None
        layers = self.layers(case)
        d1, d2 = (state_drop(case, donor, layers) for donor in (case.retain, case.unlearned))
        part = slice(None, -1) if self.inner else slice(None)
        values = depth(d1[part], d2[part])
        none = int(np.isnan(values).sum())
        why = (
            f"to {none} of {len(values)} answers the retain model's states cost no layer more than {FLOOR} nats a token"
        )
        curves = {"drop": _by_layer(layers, {"retain": d1, "unlearned": d2})}
        return self.reading(values, curves, (f"{why}: they say nothing",) if none else ())


@register("uds")
class UDS(_Depth):
    """The Unlearning Depth Score. Most of its weight lies in the last layer, whose states are nearly the output."""


@register("uds_inner")
class InnerUDS(_Depth):
    """The Unlearning Depth Score without the last layer."""

    inner = True


@register("state_drop")
class StateDrop(_States):
    """What stands in for the depth score where there is no retain model: the drop itself, but in the last layer."""

    unit, knows = "nats a token", "low"
    nulls = ("same", "never_knew")
    passes = 3.0

    def measure(self, case: Case) -> Reading:
        """Mean over layers, a fact."""
        layers = self.layers(case)
        drop = state_drop(case, case.unlearned, layers)
        values = drop[:-1].mean(axis=0) if len(layers) > 1 else drop[0]
        return self.reading(values, {"drop": _by_layer(layers, {"unlearned": drop})})


def depth(d1: Float[np.ndarray, "layer fact"], d2: Float[np.ndarray, "layer fact"]) -> Float[np.ndarray, " fact"]:
    """The score of each fact from both drops; NaN where no layer has `d1 > 0.05`."""
    counts = d1 > FLOOR
    weight = np.where(counts, d1, 0)
    share = np.clip(np.divide(d2, d1, out=np.zeros_like(d2), where=counts), 0, 1)
    total = weight.sum(axis=0)
    return np.where(total > 0, (weight * share).sum(axis=0) / np.where(total > 0, total, 1), np.nan)


def state_drop(case: Case, donor: nn.Module, layers: tuple[int, ...]) -> Float[np.ndarray, "layer fact"]:
    """How much less likely the vanilla model finds each answer with a donor's hidden states, nats a token.

    The states behind a layer are replaced, one layer at a time, at the scored positions. Kept for the case, so that
    instruments that look at the same drop share it.
    """
    asked = case.target
    if donor is case.vanilla:
        return np.zeros((len(layers), len(asked)))
    found = case.found.setdefault(donor, {})
    key = ("state_drop", asked, layers)
    if key not in found:
        result = patch_sweep(
            case.vanilla,
            donor,
            asked.prompts,
            reference=case.vanilla,
            answers=asked.answers,
            tokenizer=asked.wording.tokenizer,
            n_tokens=asked.n_tokens,
            settings="resid",
            windows=windows.of([[layer] for layer in layers]),
            positions="scored",
            measures="answer_logprob",
            progress=False,
        )
        kept, mask = result.losses.measured["answer_logprob"], result.losses.mask
        count = mask.sum(axis=-1)
        own, patched = (np.where(mask, v, 0).sum(axis=-1) / count for v in (kept.recipient, kept.restored))
        found[key] = own - patched
    drops: np.ndarray = found[key]
    return drops


def _by_layer(layers: tuple[int, ...], drops: dict[str, Float[np.ndarray, "layer fact"]]) -> DataFrame:
    import pandas as pd

    table = pd.DataFrame({name: drop.mean(axis=1) for name, drop in drops.items()}, list(layers))
    return table.rename_axis("layer")
