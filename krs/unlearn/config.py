"""How to train, and how to edit: the settings that all methods share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from krs.errors import KrsError

Precision = Literal["fp32", "bf16-pure"]
Parameters = Literal["all", "value_vectors", "attention", "mlp", "lora"]


@dataclass(frozen=True, kw_only=True)
class Config:
    """How to train; each method's own config adds its fields to these.

    Defaults are for models of a hundred million parameters and a dozen of texts. Public code for 7B models trains with
    AdamW, learning rates of 1e-5 … 5e-5, 1–10 epochs, effective batches of 16–32 and texts of 500 tokens; the paper
    does not say what made its checkpoints.

    Attributes:
        learning_rate: of AdamW.
        steps: optimiser steps, at most.
        batch_size: forget sequences (and retain sequences) a forward.
        gradient_accumulation: forwards a step; the gradient equals that of one large batch.
        warmup: share of the steps over which the learning rate rises; it stays constant after.
        weight_decay: of AdamW.
        max_grad_norm: gradients are clipped to this norm; with 0 they are not.
        max_length: texts are cut to so many tokens.
        seed: of the order of the texts, of dropout, and of an adapter's first weights.
        precision: `"fp32"` keeps the weights in training in fp32; `"bf16-pure"` keeps weights and optimiser in bf16,
            in which most small steps round away.
        parameters: what is trained: everything; the value vectors (the MLP's output projections); the attention's
            projections; all of the MLP's; or an adapter (`"lora"`), which is merged at the end and saved beside the
            model.
        layers: train the weights of these layers only, of those that `parameters` names; by default those of all layers
            and, with `"all"`, what is outside them.
        lora_rank: rank of the adapter on every linear layer but the head.
        lora_alpha: its scale is `lora_alpha / lora_rank`.
        gradient_checkpointing: compute activations again in the backward pass instead of keeping them.
        gradient_norms: log the norms of the forget and of the retain side's gradients apart, in runs on one process.
            Under gradient accumulation this keeps two more gradients.
        save_steps: write a checkpoint every so many steps, from which the same call goes on; 0 writes one only when
            the run is interrupted. Needs an output directory.
        stop_forget_nll: stop as soon as the forget set's mean loss, in nats a token, is at least this.
        stop_bleu: stop as soon as greedy answers to the forget prompts have at most this BLEU (0 to 100) against the
            forget answers; answers have up to 30 tokens, or as many as a forget answer that was cut off.
        check_every: look at the two targets every so many steps.
    """

    learning_rate: float = 5e-6
    steps: int = 8
    batch_size: int = 4
    gradient_accumulation: int = 1
    warmup: float = 0.0
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    max_length: int = 500
    seed: int = 0
    precision: Precision = "fp32"
    parameters: Parameters = "all"
    layers: Sequence[int] | None = None
    lora_rank: int = 8
    lora_alpha: float = 16.0
    gradient_checkpointing: bool = False
    gradient_norms: bool = True
    save_steps: int = 0
    stop_forget_nll: float | None = None
    stop_bleu: float | None = None
    check_every: int = 1

    def __post_init__(self) -> None:
        positive = (
            "learning_rate",
            "steps",
            "batch_size",
            "gradient_accumulation",
            "max_length",
            "lora_rank",
            "lora_alpha",
            "check_every",
        )
        in_range(self, positive=positive, not_negative=("warmup", "weight_decay", "max_grad_norm", "seed"))
        in_range(self, finite=("stop_forget_nll", "stop_bleu"))
        if self.warmup > 1:
            raise KrsError(f"warmup={self.warmup!r}: give a share of the steps, from 0 to 1")
        if self.layers is not None:
            object.__setattr__(self, "layers", _checked_layers(self.layers))
            if self.parameters == "lora":
                raise KrsError("parameters='lora' trains none of the model's own weights: leave layers= out")
        if self.save_steps < 0:
            raise KrsError(f"save_steps={self.save_steps}: give a number of steps, or 0 for no checkpoints")
        for name, choices in (("precision", Precision), ("parameters", Parameters)):
            if getattr(self, name) not in get_args(choices):
                raise KrsError(f"{name}={getattr(self, name)!r}: choose {', '.join(map(repr, get_args(choices)))}")


def in_range(
    config: object, *, positive: Sequence[str] = (), not_negative: Sequence[str] = (), finite: Sequence[str] = ()
) -> None:
    """Raise `KrsError` for a setting of these that is not; `None`, for what is left out, is none of them.

    >>> in_range(Config(), positive=["steps"], finite=["stop_bleu"])
    """
    for name in (*positive, *not_negative, *finite):
        value = getattr(config, name)
        if value is not None and not math.isfinite(value):
            raise KrsError(f"{name}={value!r}: it has to be a finite number")
        if name in positive and not value > 0:
            raise KrsError(f"{name}={value!r}: it has to be positive")
        if name in not_negative and value < 0:
            raise KrsError(f"{name}={value!r}: it may not be negative")


def _checked_layers(given: Sequence[int]) -> tuple[int, ...]:
    """Layer numbers as a tuple, as two runs of the same settings have to have them."""
    layers = tuple(sorted(set(given)))
    if not layers or layers[0] < 0:
        raise KrsError(f"layers={list(given)!r}: give layer numbers from 0, at least one")
    return layers


@dataclass(frozen=True, kw_only=True)
class EditConfig:
    """Settings of methods that edit weights; each method's own config adds its fields to these.

    Attributes:
        seed: of whatever the method draws at random.
    """

    seed: int = 0
