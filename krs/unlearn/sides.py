"""What a method sees of each of its sets of texts, and what it asks to see."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from jaxtyping import Float, Int
from torch import Tensor

from krs.errors import KrsError
from krs.hooks.anatomy import Anatomy
from krs.hooks.capture import Activations, check_places
from krs.hooks.points import Placement

Wanted = Literal["logits", "logprob"]
"""What is wanted of the vanilla model on a side: its logits in every step, or a summed log-probability a text, which is
computed once before training."""

_IN_WORDS: dict[str, dict[str, Wanted]] = {
    "none": {},
    "logprobs": {"forget": "logprob", "retain": "logprob"},
    "live": {"retain": "logits"},
    "both": {"forget": "logprob", "retain": "logits"},
}


@dataclass(frozen=True)
class Look:
    """Activations that a method's loss looks at.

    >>> from krs import RESID
    >>> Look("retain", RESID.at(7), of="vanilla")
    Look(side='retain', at=resid.at(7), of='vanilla')

    Attributes:
        side: of which texts.
        at: the points, layers and units (`MLP_COEF.at(5, units=[3])`).
        of: the model in training, or the vanilla one on the same tokens.
    """

    side: str
    at: Placement
    of: Literal["model", "vanilla"] = "model"


@dataclass(frozen=True)
class Side:
    """What a method sees of the sequences of one side (forget, retain …) of one forward.

    Attributes:
        logits: of the model in training.
        labels: -100 where a token is only read.
        n_tokens: live tokens in the whole optimiser step, over all forwards and processes.
        n_rows: sequences in the whole optimiser step.
        ref_logits: of the vanilla model, where `reference` asks for `"logits"` of this side.
        ref_logprob: each sequence's summed log-probability under the vanilla model, where it asks for `"logprob"`.
        activations: of the model in training, where `looks` asks for them: `side.activations[RESID, 7]`.
        ref_activations: of the vanilla model.
    """

    logits: Float[Tensor, "row pos vocab"]
    labels: Int[Tensor, "row pos"]
    n_tokens: float
    n_rows: float
    ref_logits: Float[Tensor, "row pos vocab"] | None = None
    ref_logprob: Float[Tensor, " row"] | None = None
    activations: Activations = field(default_factory=Activations)
    ref_activations: Activations = field(default_factory=Activations)


def wanted_of_vanilla(reference: str | Mapping[str, Wanted], sides: Sequence[str]) -> dict[str, Wanted]:
    """What a method's `reference` asks for, side by side.

    >>> wanted_of_vanilla("both", ("forget", "retain"))
    {'forget': 'logprob', 'retain': 'logits'}
    """
    asked = _IN_WORDS[reference] if isinstance(reference, str) else reference
    return {side: asked[side] for side in sides if side in asked}


def places(looks: Sequence[Look], side: str, of: Literal["model", "vanilla"]) -> list[Placement]:
    """Where a side is looked at, of one of the two models."""
    return [look.at for look in looks if (look.side, look.of) == (side, of)]


def check_looks(name: str, looks: Sequence[Look], sides: Sequence[str], body: Anatomy) -> None:
    """Raise `KrsError` for activations that there will not be: of a side or a place that does not exist."""
    for look in looks:
        if look.side not in sides:
            raise KrsError(f"{name} looks at {look.side!r}, and its sides are {', '.join(sides)}: name one of these")
    check_places(body, [look.at for look in looks])
