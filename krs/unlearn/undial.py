"""Self-distillation with adjusted logits."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from krs.unlearn.config import Config, in_range
from krs.unlearn.losses import undial
from krs.unlearn.methods import Method, register
from krs.unlearn.sides import Side


@dataclass(frozen=True, kw_only=True)
class UnDIALConfig(Config):
    """Settings of `undial`.

    Attributes:
        beta: how much the teacher's logit of the token that is to be forgotten is lowered; public code tries 3 to 30.
    """

    beta: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range(self, positive=["beta"])


@register("undial")
class UnDIAL(Method):
    """Cross-entropy to the vanilla model's distribution, the logit of the forget token lowered by β, a mean over live
    tokens. It has a minimum, at which what the vanilla model finds second is said; no retain term. Dong et al., 2024.
    """

    config_class = UnDIALConfig
    reference = {"forget": "logits"}  # noqa: RUF012
    config: UnDIALConfig

    def loss(self, forget: Side, retain: Side | None) -> dict[str, Tensor]:
        """One term, `forget`."""
        assert forget.ref_logits is not None
        each = undial(forget.logits, forget.ref_logits, forget.labels, self.config.beta)
        return {"forget": each.sum() / forget.n_tokens}
