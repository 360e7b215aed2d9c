"""Can the right answer be told from wrong ones inside the model, whatever it says?"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from krs.hooks.anatomy import anatomy
from krs.instruments.case import Asked, Case
from krs.instruments.instrument import Instrument, register
from krs.instruments.reading import Reading
from krs.instruments.states import states_at_scored

_FOLDS = 4


@register("probe")
@dataclass(frozen=True)
class Probe(Instrument):
    """A linear probe of truth: it is fitted on right and wrong answers of some facts and judges those of the others.

    Its features are the states behind each layer at the position that predicts an answer's end, the answer read. The
    number of a fact is the share of its wrong answers that the probe finds less true than the right one, mean over
    layers; one that it cannot tell from the right one counts half. Fitted on shuffled labels it reads one half: the
    null `shuffled labels`.

    Attributes:
        ridge: penalty, as a share of the features' mean squared length.
        every: each so many layers one is probed.
    """

    ridge: float = 1.0
    every: int = 3
    unit, knows, bounds = "share of wrong answers", "high", (0.5, 1.0)
    needs = ("wrong",)
    nulls = ("same", "never_knew")
    passes = 4.0
    version = 2

    def lacks(self, case: Case) -> str | None:
        """There have to be as many facts with wrong answers as there are folds."""
        with_wrong = sum(bool(fact.wrong) for fact in case.target.facts)
        return super().lacks(case) or (f"needs {_FOLDS} facts with wrong answers" if with_wrong < _FOLDS else None)

    def measure(self, case: Case) -> Reading:
        """NaN for a fact without wrong answers."""
        asked = case.target
        which = [i for i, fact in enumerate(asked.facts) if fact.wrong]
        some = asked.only(which)
        features, of, right = read_answers(case.unlearned, some, self.every)
        draw = np.random.default_rng(case.seed)
        values, shuffled = np.full((2, len(asked)), np.nan)
        values[which] = self._judged(features, of, right, draw)
        shuffled[which] = self._judged(features, of, _shuffled(of, right, draw), draw, judged_by=right)
        return replace(self.reading(values), nulls={"shuffled labels": shuffled})

    def _judged(
        self,
        features: Float[Tensor, "layer answer d"],
        of: np.ndarray,
        labels: np.ndarray,
        draw: np.random.Generator,
        judged_by: np.ndarray | None = None,
    ) -> Float[np.ndarray, " fact"]:
        """The share of wrong answers below the right one, each fact judged by a probe that has not seen it."""
        truth = labels if judged_by is None else judged_by
        folds = draw.permutation(of.max() + 1) % _FOLDS
        found = np.zeros((len(features), of.max() + 1))
        for layer, x in enumerate(features):
            for fold in range(_FOLDS):
                test = folds[of] == fold
                score = _ridge(x[~test], labels[~test], x[test], self.ridge)
                for fact in np.flatnonzero(folds == fold):
                    mine = of[test] == fact
                    good, bad = score[mine & truth[test]], score[mine & ~truth[test]]
                    found[layer, fact] = ((good[:, None] > bad[None]) + (good[:, None] == bad[None]) / 2).mean()
        return np.asarray(found.mean(axis=0))


def read_answers(
    model: nn.Module, asked: Asked, every: int
) -> tuple[Float[Tensor, "layer answer d"], np.ndarray, np.ndarray]:
    """States at the end of each right and wrong answer; of which fact each is, and whether it is the right one."""
    layers = tuple(range(anatomy(model).n_layers - 1, -1, -every))[::-1]
    states, of, right = [], [], []
    for j in range(1 + max(len(fact.wrong) for fact in asked.facts)):
        which = [i for i, fact in enumerate(asked.facts) if j == 0 or len(fact.wrong) >= j]
        some = asked.only(which)
        batch = some.with_answers([fact.answer if j == 0 else fact.wrong[j - 1] for fact in some.facts])
        states += [found[:, -1] for found in states_at_scored(model, batch, layers)]
        of += which
        right += [j == 0] * len(which)
    return torch.stack(states, dim=1), np.array(of), np.array(right)


def _ridge(x: Tensor, labels: np.ndarray, test: Tensor, ridge: float) -> Float[np.ndarray, " answer"]:
    """Scores of `test` by ridge regression on labels, through the samples, of which there are fewer than features."""
    centre = x.double().mean(0)
    inside, outside = x.double() - centre, test.double() - centre
    wanted = torch.as_tensor(labels, dtype=torch.float64)
    gram = inside @ inside.T
    if not gram.any():  # all answers look alike
        return np.zeros(len(test))
    gram.diagonal().add_(ridge * gram.diagonal().mean())
    return np.asarray((outside @ inside.T @ torch.linalg.solve(gram, wanted - wanted.mean())).numpy())


def _shuffled(of: np.ndarray, right: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """One answer of each fact, drawn, is called the right one."""
    labels = np.zeros_like(right)
    for fact in range(of.max() + 1):
        labels[draw.choice(np.flatnonzero(of == fact))] = True
    return labels
