"""Gradient difference with a KL retain term, as the paper's text describes it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from krs.unlearn.losses import kl_to_reference, token_logprobs
from krs.unlearn.methods import Config, Method, Side, register


@dataclass(frozen=True, kw_only=True)
class GradDiffConfig(Config):
    """Settings of `grad_diff`.

    Attributes:
        retain_weight: w of the retain term.
    """

    learning_rate: float = 1e-5
    steps: int = 40
    retain_weight: float = 1.0


@register("grad_diff")
class GradDiff(Method):
    """`-CE(x_f) + w·KL(ref ‖ model)(x_r)`, both means over live tokens.

    The forget term has no lower bound: too many steps or too high a learning rate destroy the model.
    """

    config_class = GradDiffConfig
    needs_retain = True
    reference = "live"
    config: GradDiffConfig

    def loss(self, forget: Side, retain: Side | None) -> dict[str, Tensor]:
        """The two terms, `forget` and `retain`."""
        assert retain is not None
        assert retain.ref_logits is not None
        kl = kl_to_reference(retain.logits, retain.ref_logits, retain.labels).sum() / retain.n_tokens
        return {
            "forget": token_logprobs(forget.logits, forget.labels).sum() / forget.n_tokens,
            "retain": self.config.retain_weight * kl,
        }
