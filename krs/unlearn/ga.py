"""Gradient ascent."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from krs.unlearn.config import Config
from krs.unlearn.losses import token_logprobs
from krs.unlearn.methods import Method, register
from krs.unlearn.sides import Side


@dataclass(frozen=True, kw_only=True)
class GAConfig(Config):
    """Settings of `ga`: few and small steps, for the loss has no lower bound."""

    learning_rate: float = 3e-6
    steps: int = 8


@register("ga")
class GA(Method):
    """`-CE(x_f)`, a mean over live tokens: the training loss with its sign turned.

    Nothing holds it back: given enough steps every model collapses. Jang et al., 2023.
    """

    config_class = GAConfig
    config: GAConfig

    def loss(self, forget: Side, retain: Side | None) -> dict[str, Tensor]:
        """One term, `forget`."""
        return {"forget": token_logprobs(forget.logits, forget.labels).sum() / forget.n_tokens}
