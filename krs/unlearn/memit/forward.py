"""Forwards of a model that stop where enough was seen, and such with something added to the residual stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from krs.errors import KrsError
from krs.generation.forward import accepted, device_of, head_at
from krs.hooks.anatomy import Anatomy
from krs.hooks.interrupts import interrupt_deferred
from krs.hooks.listen import on_value
from krs.hooks.overrides import ForwardOverride
from krs.hooks.points import ActivationPoint
from krs.prompts import TokenBatch

BLOCK_OUT = ActivationPoint("block_out", role="", label="Block outputs", side="output")
"""What a decoder layer returns: the residual stream behind it, `[batch, position, d]`."""

Where: TypeAlias = tuple[ActivationPoint, int]
"""A point and a layer."""


class _EnoughError(Exception):
    """Everything wanted was seen."""


def modules_of(body: Anatomy, where: Where) -> list[nn.Module]:
    """The module that a point at a layer is about; for `BLOCK_OUT` the layer itself."""
    point, layer = where
    return [body.layers[layer]] if point is BLOCK_OUT else body.modules(point, layer)


def visit(body: Anatomy, batch: TokenBatch, visitors: Mapping[Where, Callable[[Tensor], None]]) -> None:
    """Run the model until every visitor has seen its value, `[row, pos, unit]`; what comes after is not computed.

    Raises `KrsError` when the model ended before.
    """
    inputs = batch.inputs(device_of(body.model))
    shape = tuple(inputs["input_ids"].shape)
    seen: set[Where] = set()
    with ExitStack() as handles:
        for where, visitor in visitors.items():

            def pass_on(value: Tensor, where: Where = where, visitor: Callable[[Tensor], None] = visitor) -> None:
                visitor(value.detach().reshape(*shape, value.shape[-1]))
                seen.add(where)
                if len(seen) == len(visitors):
                    raise _EnoughError

            with interrupt_deferred():
                handles.callback(on_value(modules_of(body, where), where[0], pass_on).remove)
        try:
            with torch.no_grad():
                body.model(**accepted(body.model, inputs), use_cache=False)
        except _EnoughError:
            return
    point, layer = next(where for where in visitors if where not in seen)
    raise KrsError(body.never_fired(point, layer))


def read_at(
    body: Anatomy, batch: TokenBatch, positions: Int[Tensor, " row"], wanted: Sequence[Where]
) -> dict[Where, Float[Tensor, "row unit"]]:
    """Values of some points at one position a row."""
    found: dict[Where, Tensor] = {}

    def keep(where: Where) -> Callable[[Tensor], None]:
        def kept(value: Tensor) -> None:
            found[where] = at_positions(value, positions).clone()

        return kept

    visit(body, batch, {where: keep(where) for where in wanted})
    return found


def at_positions(value: Float[Tensor, "row pos unit"], positions: Int[Tensor, " row"]) -> Float[Tensor, "row unit"]:
    """One position of each row."""
    positions = positions.to(value.device)
    return value[torch.arange(len(positions), device=value.device), positions]


@contextmanager
def added(
    module: nn.Module, positions: Int[Tensor, " row"], change: Float[Tensor, "row d"], shape: tuple[int, int]
) -> Iterator[None]:
    """Inside, what `module` returns has `change` added at one position a row; gradients reach `change`.

    Args:
        module: a decoder layer, or an output projection.
        positions: of each row.
        change: of each row.
        shape: rows and positions of the batch, for modules that see both as one axis.
    """

    def plus(value: Tensor) -> Tensor:
        wide = value.reshape(*shape, value.shape[-1])
        rows = torch.arange(len(positions), device=value.device)
        moved = wide.index_put((rows, positions.to(value.device)), change.to(wide), accumulate=True)
        return moved.reshape(value.shape)

    with ExitStack() as handles:
        with interrupt_deferred():
            handles.callback(on_value([module], BLOCK_OUT, plus).remove)
        yield


def behind(body: Anatomy, batch: TokenBatch, layer: int) -> dict[nn.Module, ForwardOverride]:
    """Overrides of the layers up to `layer`, for `override_forward`: this batch's forwards begin behind it.

    What the layer returns is computed once and given out as a copy; hooks on the layer still act.
    """
    kept: list[Any] = []

    def note(_: nn.Module, __: tuple[Any, ...], output: Any) -> None:
        kept.append(output)
        raise _EnoughError

    def answer(_: Callable[..., Any], *__: Any, **___: Any) -> Any:
        output = kept[0]
        return (output[0].clone(), *output[1:]) if isinstance(output, tuple) else output.clone()

    with ExitStack() as handles:
        with interrupt_deferred():
            handles.callback(body.layers[layer].register_forward_hook(note).remove)
        try:
            with torch.no_grad():
                body.model(**accepted(body.model, batch.inputs(device_of(body.model))), use_cache=False)
        except _EnoughError:
            pass
    return {body.layers[i]: answer for i in range(layer + 1)}


def scored_logits(body: Anatomy, batch: TokenBatch) -> Float[Tensor, "row token vocab"]:
    """The logits at the batch's scored positions, with gradients."""
    device = device_of(body.model)
    with head_at(body.model, batch.scored_index(device)):
        return body.model(**accepted(body.model, batch.inputs(device)), use_cache=False).logits


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Inside, no parameter takes a gradient, so that a backward pass goes no further than it has to."""
    before = [(p, p.requires_grad) for p in model.parameters()]
    try:
        for parameter, _ in before:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter, had in before:
            parameter.requires_grad_(had)
