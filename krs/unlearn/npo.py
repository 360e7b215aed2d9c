"""Negative preference optimisation without a retain term."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from krs.unlearn.losses import npo, token_logprobs
from krs.unlearn.methods import Config, Method, Side, register


@dataclass(frozen=True, kw_only=True)
class NPOConfig(Config):
    """Settings of `npo`.

    Attributes:
        beta: how quickly a sequence that has become unlikely stops pulling; 0.1 in the paper that introduced it.
    """

    beta: float = 0.1


@register("npo")
class NPO(Method):
    """`-(2/β)·log σ(-β[logπ(y) - logπ_ref(y)])`, a mean over sequences; log-probabilities summed over the answer."""

    config_class = NPOConfig
    reference = "logprobs"
    config: NPOConfig

    def loss(self, forget: Side, retain: Side | None) -> dict[str, Tensor]:
        """One term, `forget`."""
        assert forget.ref_logprob is not None
        logprob = token_logprobs(forget.logits, forget.labels).sum(-1)
        return {"forget": npo(logprob, forget.ref_logprob, self.config.beta).sum() / forget.n_rows}
