"""Direct preference optimisation away from the forget texts: towards "I don't know", or towards retain texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from krs.errors import KrsError
from krs.unlearn.config import Config, in_range
from krs.unlearn.losses import dpo, token_logprobs
from krs.unlearn.methods import Method, register
from krs.unlearn.sides import Side

REFUSALS = (
    "I don't know.",
    "I'm sorry, I don't know the answer to that.",
    "I have no information about that.",
    "I'm afraid that I can't answer that.",
    "That is something I don't know anything about.",
    "I'm not able to say; I don't know this.",
)
"""Answers that `dpo_idk` prefers, in turn."""


@dataclass(frozen=True, kw_only=True)
class DPOConfig(Config):
    """Settings of `dpo_idk` and `dpo_retain_text`.

    Attributes:
        beta: 0.1, as in the papers that use it for unlearning.
    """

    steps: int = 6
    beta: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        in_range(self, positive=["beta"])


@dataclass(frozen=True, kw_only=True)
class DPORetainTextConfig(DPOConfig):
    """Settings of `dpo_retain_text`."""

    steps: int = 10


class _DPO(Method):
    config_class = DPOConfig
    needs_retain = True
    reference = "logprobs"
    config: DPOConfig

    def loss(self, forget: Side, retain: Side | None) -> dict[str, Tensor]:
        """One term, `preference`: each forget sequence against the one that goes with it."""
        assert retain is not None
        assert forget.ref_logprob is not None
        assert retain.ref_logprob is not None
        wanted = token_logprobs(retain.logits, retain.labels).sum(-1)
        unwanted = token_logprobs(forget.logits, forget.labels).sum(-1)
        each = dpo(wanted, retain.ref_logprob, unwanted, forget.ref_logprob, self.config.beta)
        return {"preference": each.sum() / forget.n_rows}


@register("dpo_idk")
class DPOIdk(_DPO):
    """DPO between two answers to the same question: "I don't know" is wanted, the forget answer is not.

    Takes pairs of a prompt and an answer, and no retain texts. As in open-unlearning.
    """

    makes_retain = True

    def retain_texts(self, forget: Sequence[Any]) -> list[Any]:
        """For each forget pair, the same prompt with a refusal."""
        found = []
        for i, text in enumerate(forget):
            if isinstance(text, str):
                raise KrsError(
                    f"forget text {i} is a paragraph, and dpo_idk compares two answers to a prompt: give pairs "
                    "(prompt, answer), or use dpo_retain_text"
                )
            prompt = text["prompt"] if isinstance(text, dict) else text[0]
            found.append((prompt, REFUSALS[i % len(REFUSALS)]))
        return found


@register("dpo_retain_text")
class DPORetainText(_DPO):
    """DPO without prompts: a retain text is wanted, a forget text is not.

    This is most likely what the paper's DPO checkpoints were trained with. As in ConceptVectors.
    """

    config_class = DPORetainTextConfig
