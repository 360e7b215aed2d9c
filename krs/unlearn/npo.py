"""Negative preference optimisation: alone, with a retain term, and without a reference."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from krs.unlearn.config import Config, in_range
from krs.unlearn.grad_diff import kl_term
from krs.unlearn.losses import live_tokens, npo, simnpo, token_logprobs
from krs.unlearn.methods import Method, register
from krs.unlearn.sides import Side


@dataclass(frozen=True, kw_only=True)
class NPOConfig(Config):
    """Settings of `npo`.

    Attributes:
        beta: how quickly a sequence that has become unlikely stops pulling; 0.1 in the paper that introduced it.
    """

    steps: int = 5
    beta: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range(self, positive=["beta"])


@dataclass(frozen=True, kw_only=True)
class NPOKLConfig(NPOConfig):
    """Settings of `npo_kl`.

    Attributes:
        retain_weight: w of the retain term. NPO's loss is summed over an answer and the KL is a mean over tokens, so
            it takes a weight larger by an answer's length to balance them.
    """

    steps: int = 8
    retain_weight: float = 100.0

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range(self, not_negative=["retain_weight"])


@dataclass(frozen=True, kw_only=True)
class SimNPOConfig(Config):
    """Settings of `simnpo`.

    Attributes:
        beta: 2.5 in the paper that introduced it.
        gamma: the margin; 0 there.
    """

    steps: int = 5
    beta: float = 2.5
    gamma: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range(self, positive=["beta"], finite=["gamma"])


@register("npo")
class NPO(Method):
    """`-(2/β)·log σ(-β[logπ(y) - logπ_ref(y)])`, a mean over sequences; log-probabilities summed over the answer."""

    config_class = NPOConfig
    reference = "logprobs"
    config: NPOConfig

    def loss(self, forget: Side, retain: Side | None) -> dict[str, Tensor]:
        """One term, `forget`."""
        return {"forget": _npo_term(forget, self.config.beta)}


@register("npo_kl")
class NPOKL(Method):
    """`npo + w·KL(ref ‖ model)(x_r)`, the second a mean over live tokens."""

    config_class = NPOKLConfig
    needs_retain = True
    reference = "both"
    config: NPOKLConfig

    def loss(self, forget: Side, retain: Side | None) -> dict[str, Tensor]:
        """The two terms, `forget` and `retain`."""
        kept = self.config.retain_weight * kl_term(retain)
        return {"forget": _npo_term(forget, self.config.beta), "retain": kept}


@register("simnpo")
class SimNPO(Method):
    """`-(2/β)·log σ(-(β/|y|)·logπ(y) - γ)`, a mean over sequences; no reference model. Fan et al., 2024."""

    config_class = SimNPOConfig
    config: SimNPOConfig

    def loss(self, forget: Side, retain: Side | None) -> dict[str, Tensor]:
        """One term, `forget`."""
        logprob = token_logprobs(forget.logits, forget.labels).sum(-1)
        n_tokens = live_tokens(forget.labels).sum(-1).to(logprob)
        return {"forget": simnpo(logprob, n_tokens, self.config.beta, self.config.gamma).sum() / forget.n_rows}


def _npo_term(forget: Side, beta: float) -> Tensor:
    assert forget.ref_logprob is not None
    logprob = token_logprobs(forget.logits, forget.labels).sum(-1)
    return npo(logprob, forget.ref_logprob, beta).sum() / forget.n_rows
