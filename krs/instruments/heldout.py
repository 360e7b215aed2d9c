"""Restoring without importing: a map from unlearned to vanilla states, fitted on some facts, put in for others.

A restored activation of the vanilla model holds the answer. A map that was fitted on *other* facts cannot: what it
brings back was in the unlearned model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from krs._typing import DataFrame
from krs.hooks import patched
from krs.hooks.anatomy import anatomy
from krs.hooks.library import RESID
from krs.instruments.case import Asked, Case
from krs.instruments.instrument import Instrument, register
from krs.instruments.learning import OPEN, halves
from krs.instruments.logprobs import answer_tokens, one_forward, together
from krs.instruments.reading import Reading
from krs.instruments.states import states_at_scored

Map = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class AffineMap:
    """`x + shift + (x - centre) @ down @ up`: a mean shift and a correction of low rank."""

    shift: Float[Tensor, " d"]
    centre: Float[Tensor, " d"]
    down: Float[Tensor, "d rank"]
    up: Float[Tensor, "rank d"]

    def __call__(self, x: Tensor) -> Tensor:
        """States `[…, d]`, in their own dtype and where they are."""
        shift, centre, down, up = (t.to(x) for t in (self.shift, self.centre, self.down, self.up))
        return x + shift + (x - centre) @ down @ up

    def like(self, seed: int) -> AffineMap:
        """A random map of the same norms."""
        draw = torch.Generator().manual_seed(seed)

        def alike(t: Tensor) -> Tensor:
            noise = torch.randn(t.shape, generator=draw, dtype=torch.float64).to(t.dtype)
            return noise * (t.norm() / noise.norm().clamp_min(torch.finfo(t.dtype).tiny))

        return AffineMap(alike(self.shift), self.centre, alike(self.down), alike(self.up))


def fit(x: Float[Tensor, "token d"], y: Float[Tensor, "token d"], rank: int, ridge: float) -> AffineMap:
    """The map that takes `x` to `y`: the mean difference, and the best correction of this rank by ridge regression.

    Args:
        x: states of the unlearned model.
        y: states of the vanilla model at the same tokens.
        rank: of the correction; 0 is the shift alone.
        ridge: the penalty, as a share of the mean squared length of the centred states.
    """
    x, y = x.double(), y.double()
    centre = x.mean(0)
    shift = (y - x).mean(0)
    inside, target = x - centre, (y - x) - shift
    gram = inside @ inside.T
    if not gram.any():  # all states are alike, and nothing beside the shift can be said of them
        return AffineMap(shift, centre, x.new_zeros(x.shape[1], 0), x.new_zeros(0, x.shape[1]))
    gram.diagonal().add_(ridge * gram.diagonal().mean() * len(x))
    full = inside.T @ torch.linalg.solve(gram, target)  # [d, d], through the tokens, of which there are fewer
    u, s, v = torch.linalg.svd(full, full_matrices=False)
    return AffineMap(shift, centre, u[:, :rank] * s[:rank], v[:rank])


@register("held_out_restoration")
@dataclass(frozen=True)
class HeldOutRestoration(Instrument):
    """The share of a fact's NLL that a map fitted on other facts takes away, at the layer that was best for those.

    Attributes:
        rank: of the map beside its mean shift.
        ridge: its penalty.
        every: each so many layers one is tried.
    """

    rank: int = 4
    ridge: float = 0.1
    every: int = 3
    unit, knows = "share of NLL", "high"
    nulls = ("never_knew",)
    passes = 30.0

    def lacks(self, case: Case) -> str | None:
        """There have to be two facts to hold one out."""
        return super().lacks(case) or ("needs two facts or more" if len(case.target) < 2 else None)

    def measure(self, case: Case) -> Reading:
        """NaN for a fact that is answered openly (below 0.05 nats a token)."""
        asked, parts = case.target, halves(len(case.target), case.seed)
        values, random = np.full(len(asked), np.nan), np.full(len(asked), np.nan)
        curves: dict[str, list[np.ndarray]] = {"held out": [], "fitted": []}
        before = answer_tokens(case.unlearned, asked.batch).nll()
        layers = self.layers(case.unlearned)
        for known, test in (parts, parts[::-1]):
            maps = self.fitted(case, asked.only(known), layers)
            fitted = self.after(case.unlearned, asked.only(known), layers, maps)
            tested = self.after(case.unlearned, asked.only(test), layers, maps)
            best = int(fitted.mean(axis=1).argmin())
            values[test] = 1 - tested[best] / before[test]
            sham = [maps[best].like(case.seed)]
            random[test] = 1 - self.after(case.unlearned, asked.only(test), (layers[best],), sham)[0] / before[test]
            curves["held out"].append(1 - tested.mean(axis=1) / before[test].mean())
            curves["fitted"].append(1 - fitted.mean(axis=1) / before[known].mean())
        unrelated = self._of_unrelated(case, layers, before)
        is_open = before < OPEN
        found = {"random map": random} | ({} if unrelated is None else {"map of unrelated facts": unrelated})
        notes = (f"{is_open.sum()} of {len(asked)} answers are given openly",) if is_open.any() else ()
        read = self.reading(np.where(is_open, np.nan, values), {"recovered": _table(layers, curves)}, notes)
        return replace(read, nulls={name: np.where(is_open, np.nan, v) for name, v in found.items()})

    def layers(self, model: nn.Module) -> tuple[int, ...]:
        """Those that are tried: the last but one, and back from it."""
        return tuple(range(anatomy(model).n_layers - 2, -1, -self.every))[::-1] or (0,)

    def fitted(self, case: Case, asked: Asked, layers: tuple[int, ...]) -> list[AffineMap]:
        """A map a layer."""
        ours, theirs = (states_at_scored(m, asked.batch, layers) for m in (case.unlearned, case.vanilla))
        x, y = (torch.cat(states, dim=1) for states in (ours, theirs))
        return [fit(a, b, self.rank, self.ridge) for a, b in zip(x, y, strict=True)]

    def after(
        self, model: nn.Module, asked: Asked, layers: Sequence[int], maps: Sequence[Map]
    ) -> Float[np.ndarray, "layer fact"]:
        """NLL with the map of a layer put in behind it, at the scored positions."""
        found = np.zeros((len(layers), len(asked)))
        for rows in list(together(asked.batch, model)):
            part = asked.batch.rows(rows.start, rows.stop)
            where = part.where("scored")
            for i, (layer, mapped) in enumerate(zip(layers, maps, strict=True)):
                with patched(model, RESID.at(layer).map(mapped, where=where)):
                    found[i, rows] = one_forward(model, part, "the patched").nll()
        return found

    def _of_unrelated(
        self, case: Case, layers: tuple[int, ...], before: Float[np.ndarray, " fact"]
    ) -> Float[np.ndarray, " fact"] | None:
        """What the best map of the unrelated facts takes away."""
        if case.unrelated is None:
            return None
        maps = self.fitted(case, case.unrelated, layers)
        best = int(self.after(case.unlearned, case.unrelated, layers, maps).mean(axis=1).argmin())
        return 1 - self.after(case.unlearned, case.target, (layers[best],), [maps[best]])[0] / before


def _table(layers: Sequence[int], curves: dict[str, list[np.ndarray]]) -> DataFrame:
    import pandas as pd

    means = {name: np.mean(rows, axis=0) for name, rows in curves.items()}
    return pd.DataFrame(means, list(layers)).rename_axis("layer")
