"""Recordings under TransformerLens' names and in its shapes."""

from __future__ import annotations

from torch import Tensor

from krs.errors import KrsError
from krs.hooks.fused import HeadCounts
from krs.hooks.lens_names import HOOK_OF
from krs.hooks.points import ActivationPoint
from krs.hooks.record import Recording


def to_transformer_lens(acts: Recording) -> dict[str, Tensor]:
    """A recording under TransformerLens' names and in its shapes, for `ActivationCache(…, model)`.

    Values of heads are `[batch, pos, head, d_head]`, all others `[batch, pos, d]`. Weights are left out.

    >>> import krs, torch
    >>> model, _ = krs.load("smollm2")
    >>> with krs.hooks.record(model, "blocks.{l}.attn.hook_z", layers=[3]) as acts:
    ...     _ = model(torch.tensor([[3, 5, 8]]))
    >>> {name: list(value.shape) for name, value in krs.hooks.to_transformer_lens(acts).items()}
    {'blocks.3.attn.hook_z': [1, 3, 9, 64]}

    Raises `KrsError` for a point that TransformerLens has no name for, chosen units and heads among them.
    """
    found = {}
    for point in acts.points:
        if not isinstance(point, ActivationPoint):
            continue
        if point.name not in HOOK_OF:
            raise KrsError(
                f"TransformerLens has no hook point for {point.name}: take acts[{point.name}, layer] as it is; named "
                f"there are {', '.join(sorted(HOOK_OF))}"
            )
        for layer in acts.layers:
            value = acts[point, layer]
            if point.heads_of is not None:
                value = value.unflatten(-1, (getattr(HeadCounts.of(acts.config), point.heads_of), -1))
            found[f"blocks.{layer}.{HOOK_OF[point.name]}"] = value
    return found
