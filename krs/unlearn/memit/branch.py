"""How the MLP projection's output has to change for its block's output to change as wanted."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor, nn

from krs.generation.forward import accepted, device_of
from krs.hooks.anatomy import Anatomy
from krs.hooks.interrupts import interrupt_deferred
from krs.hooks.library import VALUE_VECTORS
from krs.prompts import TokenBatch
from krs.unlearn.memit.forward import added, at_positions, frozen

_LINEAR = 1e-3
_NOTHING = 1e-6
_ITERATIONS = 100


def projection_change(
    body: Anatomy,
    layer: int,
    batch: TokenBatch,
    positions: Int[Tensor, " row"],
    wanted: Float64[Tensor, "row d"],
) -> Float64[Tensor, "row d"]:
    """The change of the output projection's output that moves the block's output by `wanted`.

    In most families that is `wanted` itself, in Granite a multiple. Which, is measured by adding `wanted` once.
    Where a norm stands behind the projection (OLMo2, OLMo3, Gemma2, Gemma3, GLM4) not every change can be reached;
    there the squared distance is minimised through that one layer by L-BFGS.
    """
    device = device_of(body.model)
    through = _block(body, layer, batch, positions)
    target = wanted.float().to(device)
    with frozen(body.model), torch.no_grad():
        still = through(torch.zeros_like(target))
        probe = through(target) - still
    if target.norm() <= _NOTHING * still.norm():
        return wanted
    factor = (probe * target).sum() / target.square().sum()
    if (probe - factor * target).norm() <= _LINEAR * probe.norm():
        return wanted / float(factor)
    with frozen(body.model):
        return _least_squares(through, still + target, target).cpu().double()


def _least_squares(
    through: Callable[[Tensor], Tensor], goal: Float[Tensor, "row d"], wanted: Float[Tensor, "row d"]
) -> Float[Tensor, "row d"]:
    """The change from nothing that comes nearest; rows are weighted alike, whatever the size of what they want."""
    sizes = wanted.square().sum(-1).clamp(min=1e-30)
    change = torch.zeros_like(wanted, requires_grad=True)
    search = torch.optim.LBFGS(
        [change], max_iter=_ITERATIONS, line_search_fn="strong_wolfe", tolerance_grad=1e-9, tolerance_change=1e-12
    )

    def distance() -> Tensor:
        search.zero_grad()
        loss = ((through(change) - goal).square().sum(-1) / sizes).sum()
        loss.backward()
        return loss

    search.step(distance)
    return change.detach()


def _block(
    body: Anatomy, layer: int, batch: TokenBatch, positions: Int[Tensor, " row"]
) -> Callable[[Float[Tensor, "row d"]], Float[Tensor, "row d"]]:
    """The block's output at `positions` as a function of what is added to its projection's output there."""
    block = body.layers[layer]
    (projection,) = body.modules(VALUE_VECTORS, layer)
    args, kwargs = _called_with(body, layer, batch)
    shape = (len(batch), max(map(len, batch.tokens)))

    def through(change: Tensor) -> Tensor:
        with added(projection, positions, change, shape):
            out = block(*(a.clone() if isinstance(a, Tensor) else a for a in args), **kwargs)
        return at_positions(out[0] if isinstance(out, tuple) else out, positions).float()

    return through


class _CalledError(Exception):
    """The block's arguments are known."""


def _called_with(body: Anatomy, layer: int, batch: TokenBatch) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What the decoder calls this block with."""
    seen: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append((args, kwargs))
        raise _CalledError

    with ExitStack() as handles:
        with interrupt_deferred():
            handles.callback(body.layers[layer].register_forward_pre_hook(note, with_kwargs=True).remove)
        inputs = accepted(body.model, batch.inputs(device_of(body.model)))
        try:
            with torch.no_grad():
                body.model(**inputs, use_cache=False)
        except _CalledError:
            pass
    return seen[0]
