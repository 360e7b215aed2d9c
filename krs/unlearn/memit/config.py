"""Settings of `memit_empty` and `memit_entropy`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from krs.errors import KrsError
from krs.unlearn.config import EditConfig, in_range
from krs.unlearn.memit.requests import HOLE


@dataclass(frozen=True, kw_only=True)
class MemitConfig(EditConfig):
    """Settings that both objectives share. Nothing is drawn at random, so `seed` changes nothing.

    Attributes:
        layers: the edited layers, in a row. By default a window that begins an eighth of the way up and ends at a
            quarter (`default_layers`).
        steps: of Adam, on δ.
        step_size: of Adam.
        kl_weight: of the KL on `"{subject} is a"`.
        weight_decay: of `‖δ‖/‖z0‖²`.
        clamp: `‖δ‖` is at most so many times `‖z0‖`.
        covariance_weight: λ, how much the usual coefficients are kept as they are. Smaller edits more.
        min_tokens: refuse a corpus of fewer tokens.
        ridge: ε of `C + ε·tr(C)/n·I`.
        max_length: the corpus is cut into pieces of so many tokens; a prompt may not have more.
        contexts: what stands around the prompt (or around the chat message with the subject), `{}` being the prompt.
            Keys, `z0` and the objective are means over them.
        batch_size: requests that are optimised together.
        subjects: names of what is forgotten; with them, pairs of a prompt and an answer are requests too.
        cache: keep the corpus's second moments in the cache directory.
    """

    layers: Sequence[int] | None = None
    steps: int = 25
    step_size: float = 0.5
    kl_weight: float = 0.0625
    weight_decay: float = 1e-3
    clamp: float = 4.0
    covariance_weight: float = 15000.0
    min_tokens: int = 100_000
    ridge: float = 0.0
    max_length: int = 500
    contexts: Sequence[str] = (HOLE,)
    batch_size: int = 16
    subjects: Sequence[str] = ()
    cache: bool = True

    def __post_init__(self) -> None:
        for name in ("layers", "contexts", "subjects"):
            given = getattr(self, name)
            if isinstance(given, str):
                raise KrsError(f"{name}={given!r}: give a list, [{given!r}]")
            if given is not None:
                object.__setattr__(self, name, tuple(given))
        positive = ("steps", "step_size", "clamp", "covariance_weight", "min_tokens", "max_length", "batch_size")
        in_range(self, positive=positive, not_negative=("kl_weight", "weight_decay", "ridge"))
        if not self.contexts or any(context.count(HOLE) != 1 for context in self.contexts):
            raise KrsError(f"contexts={self.contexts!r}: give at least one, each with {{}} once, where the prompt goes")
        if self.layers is not None:
            _check_window(self.layers)


@dataclass(frozen=True, kw_only=True)
class MemitEmptyConfig(MemitConfig):
    """Settings of `memit_empty`.

    Attributes:
        target: the meaningless word that is to follow every prompt.
    """

    target: str = " dummy"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.target.strip():
            raise KrsError(f"target={self.target!r}: give a word")


@dataclass(frozen=True, kw_only=True)
class MemitEntropyConfig(MemitConfig):
    """Settings of `memit_entropy`."""


def _check_window(layers: Sequence[Any]) -> None:
    if not layers:
        raise KrsError("layers=() names no layer: give at least one, or leave it out for the default window")
    if any(not isinstance(layer, int) or layer < 0 for layer in layers):
        raise KrsError(f"layers={list(layers)!r}: give layer numbers, from 0")
    if sorted(set(layers)) != list(layers):
        raise KrsError(f"layers={list(layers)!r}: give each layer once, from the first to the last")
