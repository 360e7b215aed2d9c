"""The gradients of the forget and of the retain side, told apart."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class SideNorms:
    """Norms of what each side's backward pass adds to the gradient.

    Used as `with norms.of("forget", scale=1.0): logits.backward(…)`; `scale` is what the loss was multiplied by, as
    fp16's gradient scaler does it, and is divided out. Several backward passes of a side are one gradient if `keep` is
    set (their sum is kept); without it each side has one.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], keep: bool) -> None:
        self.keep = keep
        self.side = ""
        self.scale = 1.0
        self.squares: dict[str, Tensor] = {}
        self.sums: dict[str, dict[int, Tensor]] = {}
        self.handles = [p.register_hook(self._hook(i)) for i, p in enumerate(parameters) if p.requires_grad]

    def _hook(self, i: int):  # type: ignore[no-untyped-def]
        def seen(gradient: Tensor) -> None:
            if self.side and self.keep:
                kept = self.sums.setdefault(self.side, {})
                kept[i] = kept[i] + gradient if i in kept else gradient.clone()
            elif self.side:
                square = (gradient.float() / self.scale).square().sum()
                self.squares[self.side] = self.squares.get(self.side, torch.zeros_like(square)) + square

        return seen

    @contextmanager
    def of(self, side: str, scale: float = 1.0) -> Iterator[None]:
        """Inside, a backward pass is that of a side, of a loss that was multiplied by `scale`."""
        self.side, self.scale = side, scale
        try:
            yield
        finally:
            self.side = ""

    def clear(self) -> None:
        """A new step begins."""
        self.squares.clear()
        self.sums.clear()

    def norms(self) -> dict[str, float]:
        """The norm of each side's gradient in this step, before clipping."""
        for side, kept in self.sums.items():
            self.squares[side] = torch.stack([(g.float() / self.scale).square().sum() for g in kept.values()]).sum()
        return {side: float(square.sqrt()) for side, square in self.squares.items()}

    def close(self) -> None:
        """Take the hooks away."""
        for handle in self.handles:
            handle.remove()
        self.clear()
