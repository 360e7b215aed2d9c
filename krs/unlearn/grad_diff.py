"""Gradient difference: ascent on the forget texts, and a term that keeps the model as it is on the retain texts."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from krs.unlearn.config import Config, in_range
from krs.unlearn.losses import kl_to_reference, token_logprobs
from krs.unlearn.methods import Method, register
from krs.unlearn.sides import Side


@dataclass(frozen=True, kw_only=True)
class GradDiffConfig(Config):
    """Settings of `grad_diff`.

    Attributes:
        retain_weight: w of the retain term. The KL is zero at the first step and small beside the ascent for some more,
            so that on a small model a weight above 1 keeps unrelated answers better.
    """

    retain_weight: float = 5.0

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range(self, not_negative=["retain_weight"])


@dataclass(frozen=True, kw_only=True)
class GradDiffCEConfig(GradDiffConfig):
    """Settings of `grad_diff_ce`; the weight is 1.5 in ConceptVectors and 1 in TOFU."""

    steps: int = 10
    retain_weight: float = 1.5


@register("grad_diff")
class GradDiff(Method):
    """`-CE(x_f) + w·KL(ref ‖ model)(x_r)`, both means over live tokens, as the paper's text describes it.

    The forget term has no lower bound: too many steps or too high a learning rate destroy the model.
    """

    config_class = GradDiffConfig
    needs_retain = True
    reference = "live"
    config: GradDiffConfig

    def loss(self, forget: Side, retain: Side | None) -> dict[str, Tensor]:
        """The two terms, `forget` and `retain`."""
        return {"forget": _ascent(forget), "retain": self.config.retain_weight * kl_term(retain)}


@register("grad_diff_ce")
class GradDiffCE(Method):
    """`-CE(x_f) + w·CE(x_r)`, both means over live tokens; needs no reference model. Liu et al., 2022; TOFU."""

    config_class = GradDiffCEConfig
    needs_retain = True
    config: GradDiffCEConfig

    def loss(self, forget: Side, retain: Side | None) -> dict[str, Tensor]:
        """The two terms, `forget` and `retain`."""
        assert retain is not None
        kept = -token_logprobs(retain.logits, retain.labels).sum() / retain.n_tokens
        return {"forget": _ascent(forget), "retain": self.config.retain_weight * kept}


def kl_term(retain: Side | None) -> Tensor:
    """`KL(ref ‖ model)` over the retain side's live tokens."""
    assert retain is not None
    assert retain.ref_logits is not None
    return kl_to_reference(retain.logits, retain.ref_logits, retain.labels).sum() / retain.n_tokens


def _ascent(forget: Side) -> Tensor:
    return token_logprobs(forget.logits, forget.labels).sum() / forget.n_tokens
