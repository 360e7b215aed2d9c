"""Hidden states of the unlearned model put into the vanilla one: from which layer on is the answer missing?

The Unlearning Depth Score (arXiv 2605.24614): hidden states of a model that never knew, and of the unlearned one, take
the place of the vanilla model's own, layer by layer, at the positions that predict the answer, and the answer's
log-probability drops by `d1` and `d2`. The score is `sum(d1 * clip(d2 / d1, 0, 1)) / sum(d1)` over the layers with
`d1 > 0.05`: 0 for a model whose states say as much as the vanilla model's, 1 for one that is as empty as the retain
model.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import nn

from krs._typing import DataFrame
from krs.generation.forward import device_of, logits_at
from krs.hooks import patched, record
from krs.hooks.anatomy import anatomy
from krs.hooks.library import RESID
from krs.instruments.case import Asked, Case
from krs.instruments.instrument import Instrument, register
from krs.instruments.logprobs import answer_tokens, one_forward, together
from krs.instruments.reading import Reading

FLOOR = 0.05
"""A layer counts where the retain model's states cost more than so many nats a token."""


class _Depth(Instrument):
    unit, knows, bounds = "0 knows, 1 as the retain model", "low", (1.0, 0.0)
    needs = ("retain",)
    nulls = ("same",)
    passes = 60.0
    layers = slice(None)

    def measure(self, case: Case) -> Reading:
        """The score of each fact; NaN for one at which no layer counts."""
        assert case.retain is not None
        d1 = state_drop(case, case.retain)
        d2 = state_drop(case, case.unlearned)
        curves = {"drop": _by_layer({"retain": d1, "unlearned": d2})}
        return self.reading(depth(d1[self.layers], d2[self.layers]), curves)


@register("uds")
class UDS(_Depth):
    """The Unlearning Depth Score. Most of its weight lies in the last layer, whose states are nearly the output."""


@register("uds_inner")
class InnerUDS(_Depth):
    """The Unlearning Depth Score without the last layer."""

    layers = slice(-1)


@register("state_drop")
class StateDrop(Instrument):
    """What stands in for the depth score where there is no retain model: the drop itself, but in the last layer."""

    unit, knows = "nats a token", "low"
    nulls = ("same", "never_knew")
    passes = 30.0

    def measure(self, case: Case) -> Reading:
        """Mean over layers, a fact."""
        drop = state_drop(case, case.unlearned)
        return self.reading(drop[:-1].mean(axis=0), {"drop": _by_layer({"unlearned": drop})})


def depth(d1: Float[np.ndarray, "layer fact"], d2: Float[np.ndarray, "layer fact"]) -> Float[np.ndarray, " fact"]:
    """The score of each fact from both drops; NaN where no layer has `d1 > 0.05`."""
    counts = d1 > FLOOR
    weight = np.where(counts, d1, 0)
    share = np.clip(np.divide(d2, d1, out=np.zeros_like(d2), where=counts), 0, 1)
    total = weight.sum(axis=0)
    return np.where(total > 0, (weight * share).sum(axis=0) / np.where(total > 0, total, 1), np.nan)


@torch.no_grad()
def state_drop(case: Case, donor: nn.Module) -> Float[np.ndarray, "layer fact"]:
    """How much less likely the vanilla model finds each answer with a donor's hidden states, nats a token.

    The states behind a layer are replaced, one layer at a time, at the scored positions. Kept for the case, so that
    instruments that look at the same drop share it.
    """
    found = case.found.setdefault(donor, {})
    key = ("state_drop", case.target)
    if key not in found:
        found[key] = _state_drop(case.vanilla, donor, case.target)
    drops: np.ndarray = found[key]
    return drops


def _state_drop(vanilla: nn.Module, donor: nn.Module, asked: Asked) -> Float[np.ndarray, "layer fact"]:
    n_layers = anatomy(vanilla).n_layers
    own = -answer_tokens(vanilla, asked.batch, "vanilla").nll()
    drops = np.zeros((n_layers, len(asked)))
    for rows in list(together(asked.batch, vanilla, donor)):
        part = asked.batch.rows(rows.start, rows.stop)
        where = part.where("scored")
        with record(donor, RESID) as states:
            logits_at(donor, part.inputs(device_of(donor)), part.scored_index())
        for layer in range(n_layers):
            with patched(vanilla, RESID.at(layer).set(states, where=where)):
                drops[layer, rows] = own[rows] + one_forward(vanilla, part, "the patched").nll()
    return drops


def _by_layer(drops: dict[str, Float[np.ndarray, "layer fact"]]) -> DataFrame:
    import pandas as pd

    table = pd.DataFrame({name: drop.mean(axis=1) for name, drop in drops.items()})
    return table.rename_axis("layer")
