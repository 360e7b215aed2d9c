"""What a module of the recipient computes in rows with something restored: overrides of its forward."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from krs.hooks.anatomy import Anatomy
from krs.hooks.ends import read_point
from krs.hooks.interventions import Intervention
from krs.hooks.linear import LinearMap
from krs.hooks.overrides import ForwardOverride
from krs.hooks.values import by_position, first_tensor, returned, with_first, with_returned
from krs.hooks.weights import diagonal, linear_map, own_bias
from krs.restore.wave.layout import Layout, repeated


@dataclass
class Seen:
    """What passed through one module in one row of a model.

    Attributes:
        module: the module.
        path: its path inside the layer; `""` for the layer itself.
        calls: how often it was called.
        inputs: the value that went in.
        output: the value that came out.
        returned: all that it returned.
    """

    module: nn.Module
    path: str
    calls: int = 0
    inputs: Tensor | None = None
    output: Tensor | None = None
    returned: Any = None

    def note(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """An override that changes nothing and keeps copies of the values."""
        self.inputs = first_tensor(args, kwargs)[1].clone()
        out = forward(*args, **kwargs)
        self.output, self.returned = returned(out).clone(), out
        self.calls += 1
        return out


@dataclass
class Branch:
    """The attention or the MLP of a layer, and the module at its end whose output is all that the layer takes of it.

    Attributes:
        terminal: the output projection, as seen in the base row.
        inside: the path of the module around it.
        block: that module, if it returns what the projection returns, so that it can be skipped as a whole.
        block_returned: all that the block returned in the base row.
        written: whether the layer writes into what it gets (Falcon adds in place).
    """

    terminal: Seen
    inside: str
    block: nn.Module | None = None
    block_returned: Any = None
    written: bool = False

    @property
    def target(self) -> nn.Module:
        """What is overridden when the output is known beforehand."""
        return self.terminal.module if self.block is None else self.block

    @property
    def target_path(self) -> str:
        """Its path inside the layer."""
        return self.terminal.path if self.block is None else self.inside

    def constant(self, value: Tensor) -> ForwardOverride:
        """An override of the target with a constant output, given for one row, for as many rows as there are."""
        return partial(self._constant, value, self.block is not None)

    def bare_constant(self, value: Tensor) -> ForwardOverride:
        """The same for the projection itself, where the block around it runs."""
        return partial(self._constant, value, False)

    def _constant(self, value: Tensor, as_block: bool, _: Any, *args: Any, **kwargs: Any) -> Any:
        whole = repeated(value, first_tensor(args, kwargs)[1].shape[0] // value.shape[0])
        whole = whole.clone() if self.written else whole
        if as_block and isinstance(self.block_returned, tuple):
            return whole, *(None for _ in self.block_returned[1:])
        return whole

    def holds(self, path: str) -> bool:
        """Whether a module of the layer is this branch's block or inside it."""
        return path == self.terminal.path or (
            bool(self.inside) and (path == self.inside or path.startswith(f"{self.inside}."))
        )


@dataclass
class Change:
    """Interventions at one module, with the donor's values for one row and the layout that says where they go.

    Attributes:
        layout: of a row.
        module: whose value changes; tells how it lies.
        items: interventions, each with the donor's value and the units that it is about.
    """

    layout: Layout
    module: nn.Module
    items: list[tuple[Intervention, Tensor, tuple[int, ...] | None]] = field(default_factory=list)

    @property
    def is_whole(self) -> bool:
        """Whether nothing of the recipient's own value is left."""
        return any(item.is_whole and units is None for item, _, units in self.items)

    def constant(self) -> Tensor:
        """What is put where nothing of the own value is left, one row."""
        return next(donor for item, donor, units in self.items if item.is_whole and units is None)

    def __call__(self, own: Tensor) -> Tensor:
        """The value of so many rows as `own` has, after the interventions."""
        if self.is_whole:
            donor = self.constant()
            return repeated(donor.to(own), own.shape[0] // donor.shape[0]).clone()
        sequences, length = self.layout.shape
        for item, donor, units in self.items:
            rows = own.shape[0] // donor.shape[0]
            view, back = by_position(own, rows * sequences, length, self.module)
            other, _ = by_position(donor.to(own), sequences, length, self.module)
            where = self.layout.where[item.positions]
            mask = None if where is None else repeated(where.to(own.device), rows)
            own = back(item.apply(view, repeated(other, rows), mask, units))
        return own


def override(before: Change | None, run: ForwardOverride | None, after: Change | None) -> ForwardOverride:
    """A forward whose input is changed, which runs something else, and whose output is changed."""

    def forward_with(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if before is not None:
            slot, value = first_tensor(args, kwargs)
            args, kwargs = with_first(args, kwargs, slot, before(value))
        out = forward(*args, **kwargs) if run is None else run(forward, *args, **kwargs)
        return out if after is None else with_returned(out, after(returned(out)))

    return forward_with


def swapped(theirs: nn.Module, ours: nn.Module, path: str, rows: Sequence[int] | None) -> ForwardOverride:
    """A forward with another model's weight and the module's own bias.

    Args:
        theirs: the other model's module; its linear map is found now, while it is in memory.
        ours: the module that is overridden.
        path: for messages.
        rows: which rows of the weight (`[in, out]`) are the other's; `None` for all of them.
    """
    if diagonal(ours) is not None:
        return _other_norm(theirs, rows)
    weight = linear_map(theirs, path).weight
    if rows is not None:
        weight = mixed(linear_map(ours, path).weight, weight, rows)

    def other(forward: Callable[..., Tensor], value: Tensor, *rest: Any) -> Tensor:
        return LinearMap(weight, own_bias(ours, forward, value))(value).to(value.device)

    return other


def mixed(own: Tensor, other: Tensor, rows: Sequence[int] | None) -> Tensor:
    """A weight with some rows, `None` for all, of another."""
    if rows is None:
        return other.detach().to(own)
    new = own.detach().clone()
    new[list(rows)] = other[list(rows)].to(new)
    return new


def end_weight(recipient: Anatomy, donor: Anatomy, interventions: Iterable[Intervention]) -> tuple[nn.Module, Tensor]:
    """The recipient's token embedding or head, and its weight (`[in, out]`) after what is done to it."""
    points = sorted((i.point for i in interventions), key=lambda p: p.name)
    (module,), path = recipient.modules(points[0], None), recipient.path(points[0], None)
    weight = read_point(points[0], module, path)
    for point in points:
        (theirs,) = donor.modules(point, None)
        other = read_point(point, theirs, donor.path(point, None))
        weight = mixed(weight, other, recipient.units(point, None))
    return module, weight


def _other_norm(theirs: nn.Module, units: Sequence[int] | None) -> ForwardOverride:
    """A norm with another model's weight, or some units of it, and its own bias, which is what it makes of zeros.

    What a norm gets beside its input (the gate of a gated one) goes along, and has no part in the bias.
    """

    def other(forward: Callable[..., Tensor], value: Tensor, *gates: Tensor) -> Tensor:
        def applied(x: Tensor) -> Tensor:
            return theirs(*(a.to(device_of_module(theirs, x)) for a in (x, *gates))).to(value.device)

        zero = torch.zeros_like(value if gates else value[:1])
        whole = applied(value) + (forward(zero, *gates) - applied(zero))
        if units is None:
            return whole
        some = forward(value, *gates).clone()  # each unit of a norm has its own weight
        some[..., list(units)] = whole[..., list(units)]
        return some

    return other


def replaced(theirs: nn.Module) -> ForwardOverride:
    """A forward that is another model's module, biases and all."""

    def other(_: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        value = first_tensor(args, kwargs)[1]
        device = device_of_module(theirs, value)
        moved = [a.to(device) if isinstance(a, Tensor) else a for a in args]
        named = {k: a.to(device) if isinstance(a, Tensor) else a for k, a in kwargs.items()}
        out = theirs(*moved, **named)
        return with_returned(out, returned(out).to(value.device))

    return other


def scored_only(places: Tensor, layout: Layout) -> ForwardOverride:
    """A forward that computes the positions `places` of each row only; the others come out as zeros.

    For modules that treat every position by itself, in the last layer, where no later one looks at the others.
    """
    n_tokens = layout.n_tokens

    def at_scored(forward: Callable[..., Tensor], value: Tensor, *rest: Any, **kwargs: Any) -> Any:
        flat = value.reshape(-1, n_tokens, value.shape[-1])
        part = forward(flat[:, places], *rest, **kwargs)
        out = part.new_zeros(*flat.shape[:2], part.shape[-1])
        out[:, places] = part
        return out.reshape(*value.shape[:-1], part.shape[-1])

    return at_scored


def device_of_module(module: nn.Module, value: Tensor) -> torch.device:
    """Where a module's parameters are; where `value` is, for one that has none in memory."""
    return next((p.device for p in module.parameters() if p.device.type != "meta"), value.device)
