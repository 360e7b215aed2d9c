"""What a donor would change at points, and how far these changes move the logits to first order.

`Taps` listens to one forward of the donor and one of the recipient. For any cotangent of the recipient's logits (the
gradient of a measure with respect to them, say) one backward pass then says what every change contributes:
gradient times difference, for each prompt and position.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from krs.errors import KrsError
from krs.hooks.anatomy import Anatomy
from krs.hooks.calls import CallWatch
from krs.hooks.interrupts import interrupt_deferred
from krs.hooks.listen import on_call, on_value
from krs.hooks.points import ActivationPoint, Point
from krs.hooks.taps import Entry, Tap, Units, change_of_weight, is_whole
from krs.hooks.values import by_position, put, returned
from krs.hooks.weights import diagonal

_SAME = 1e-4
"""How far two ways to one gradient may be apart, relative to its size."""


class Taps:
    """Differences and gradients at points.

    Args:
        recipient: the model that something would be put into.
        donor: the model whose values and weights would be put there.
        placed: points with the layers that they are wanted at.
    """

    def __init__(self, recipient: Anatomy, donor: Anatomy, placed: Iterable[tuple[Point, int]]) -> None:
        self.recipient, self.donor = recipient, donor
        self._taps: dict[tuple[int, str, str], Tap] = {}
        self._of: dict[tuple[Point, int], list[tuple[Tap, Units]]] = {}
        self._watch = CallWatch()
        self._calls = 0
        self._busy = False
        for point, layer in placed:
            self._of[point, layer] = self._find(point, layer)
        self._entries = {tap: entry for tap in self._taps.values() if (entry := self._entry(tap)) is not None}
        self._holds: dict[type[nn.Module], bool] = {}

    def _find(self, point: Point, layer: int) -> list[tuple[Tap, Units]]:
        units = self.recipient.units(point, layer)
        chosen = None if units is None else frozenset(units)
        side = point.side if isinstance(point, ActivationPoint) else "whole" if is_whole(point) else "weight"
        found = []
        modules = zip(self.recipient.modules(point, layer), self.donor.modules(point, layer), strict=True)
        for i, (module, other) in enumerate(modules):
            path = self.recipient.path(point, layer, i)
            tap = self._taps.setdefault((layer, path, side), Tap(point, i, layer, module, other, path))
            tap.by_row |= chosen is not None and side == "weight" and diagonal(module) is None
            found.append((tap, chosen))
        return found

    def _entry(self, tap: Tap) -> Entry | None:
        """Of the module that a tap's module is part of, if that is less than the layer."""
        if not isinstance(tap.point, ActivationPoint) or tap.point.side != "input":
            return None
        inside = dict(self.recipient.layers[tap.layer].named_modules())
        path = next((path for path, module in inside.items() if module is tap.module), "").rpartition(".")[0]
        point = ActivationPoint("entry", role=f".{path}", label="entry", side="input")
        return Entry(inside[path], point) if path else None

    @contextmanager
    def of_donor(self) -> Iterator[None]:
        """Inside, a forward of the donor leaves the values that it has at the points."""
        watch = CallWatch()
        with ExitStack() as handles:
            with interrupt_deferred():
                handles.callback(watch.attach(self.donor.decoder).remove)
                for tap in self._taps.values():
                    if isinstance(tap.point, ActivationPoint):

                        def keep(value: Tensor, tap: Tap = tap) -> None:
                            tap.given = value.detach().clone()

                        handles.callback(on_value([tap.other], tap.point, keep).remove)
            yield
            self._need_all(self.donor, lambda tap: tap.given is not None or not tap.replaces)

    @contextmanager
    def of_recipient(self) -> Iterator[None]:
        """Inside, a forward of the recipient with gradients leaves differences, and a graph to ask."""
        with _frozen(self.recipient.model), ExitStack() as handles:
            with interrupt_deferred():
                handles.callback(self._watch.attach(self.recipient.decoder).remove)
                # a weight's change comes before what is put at the same module's output
                for tap in sorted(self._taps.values(), key=lambda t: t.replaces):
                    self._listen(tap, handles)
                for entry in self._entries.values():
                    self._mark(entry, handles)
            yield
            self._need_all(self.recipient, lambda tap: tap.edge is not None)

    def _listen(self, tap: Tap, handles: ExitStack) -> None:
        if isinstance(tap.point, ActivationPoint):

            def compare(value: Tensor) -> Tensor | None:
                if self._busy:
                    return None
                assert tap.given is not None
                tap.change, tap.given = tap.given.to(value).sub_(value.detach()), None
                return self._in_graph(tap, value)

            handles.callback(on_value([tap.module], tap.point, compare).remove)
            return

        def apply(args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Tensor | None:
            if self._busy:
                return None
            self._busy = True
            try:
                with torch.no_grad():
                    tap.change = change_of_weight(tap, args, kwargs, returned(output).detach())
            finally:
                self._busy = False
            return self._in_graph(tap, returned(output))

        handles.callback(on_call(tap.module, apply).remove)

    def _mark(self, entry: Entry, handles: ExitStack) -> None:
        def note(value: Tensor) -> Tensor | None:
            if self._busy or not value.requires_grad:
                return None
            alias = value.clone()
            entry.edge = get_gradient_edge(alias)
            return alias

        handles.callback(on_value([entry.block], entry.point, note).remove)

    def _in_graph(self, tap: Tap, value: Tensor) -> Tensor:
        """The same value, as a node of its own: what else reads the module's value is not meant."""
        alias = (
            value if value.requires_grad else value.detach().requires_grad_()
        ).clone()  # no view: some add in place
        tap.edge, tap.order = get_gradient_edge(alias), self._calls
        self._calls += 1
        return alias

    def _need_all(self, body: Anatomy, there: Any) -> None:
        for tap in self._taps.values():
            if not there(tap):
                raise KrsError(body.never_fired(tap.point, tap.layer))

    def ask(self, outputs: Tensor, cotangent: Tensor) -> Answer:
        """What every change contributes to `(outputs * cotangent).sum()`; the graph stays for the next one.

        Raises `KrsError` where no gradient reaches a point.
        """
        taps = [tap for tap in self._taps.values() if tap.edge is not None]
        edges = [tap.edge for tap in taps if tap.edge is not None]
        entries = {tap: entry.edge for tap, entry in self._entries.items() if entry.edge is not None}
        edges += entries.values()
        found = torch.autograd.grad(outputs, edges, cotangent, retain_graph=True, allow_unused=True)
        for tap, gradient in zip(taps, found[: len(taps)], strict=True):
            if gradient is None:
                raise KrsError(
                    f"{tap.point.name} at layer {tap.layer}: no gradient of the logits reaches {tap.path!r}, so "
                    "engine='estimate' cannot say what a change there does: use engine='auto'"
                )
        entered = dict(zip(entries, found[len(taps) :], strict=True))
        return Answer(self, dict(zip(taps, found[: len(taps)], strict=True)), entered)


class Answer:
    """What the changes contribute for one cotangent. Made by `Taps.ask`."""

    def __init__(self, taps: Taps, gradients: Mapping[Tap, Tensor], entered: Mapping[Tap, Tensor | None]) -> None:
        self._taps, self._gradients, self._entered = taps, gradients, entered
        self._known: dict[Any, Tensor] = {}

    def of(
        self, points: Sequence[Point], layer: int, where: Tensor | None = None, named: Any = None
    ) -> Float[Tensor, " prompt"]:
        """What these points at one layer contribute together, to first order.

        Where one of them acts on another, which is replaced anyway (an attention output on the coefficients of its
        layer), that path is left out.

        Args:
            points: restored together.
            layer: where.
            where: bool `[prompt, position]`: activations are replaced at these positions only; `None` for all.
            named: something hashable that stands for `where`.
        """
        key = (frozenset(points), layer, named)
        if key not in self._known:
            self._known[key] = self._together(points, layer, where)
        return self._known[key]

    def _together(self, points: Sequence[Point], layer: int, where: Tensor | None) -> Tensor:
        chosen: dict[Tap, Units] = {}
        for point in points:
            for tap, units in self._taps._of[point, layer]:
                before = chosen.get(tap, frozenset())
                chosen[tap] = None if units is None or before is None else before | units
        later: list[tuple[Tap, Tensor]] = []
        total: Tensor | None = None
        for tap in sorted(chosen, key=lambda t: -t.order):
            gradient = self._without(tap, later)
            part = self._product(tap, chosen[tap], gradient)
            if tap.replaces:
                part = part if where is None else part * where
                later.append((tap, self._replaced(tap, gradient, chosen[tap], where)))
            total = part.sum(1) if total is None else total + part.sum(1)
        assert total is not None
        return total

    def _without(self, tap: Tap, later: list[tuple[Tap, Tensor]]) -> Tensor:
        """The gradient at a tap, less what acts through those that are replaced after it."""
        gradient = self._gradients[tap]
        if not later or tap.edge is None:
            return gradient
        found = self._by_entry(tap, *later[0]) if len(later) == 1 else _backward(later, tap)
        return gradient if found is None else gradient - found

    def _by_entry(self, tap: Tap, after: Tap, gradient: Tensor) -> Tensor | None:
        """What acts through `after`, from the gradient where its block is entered.

        That is the same only where the block lets nothing by: seen to be so once for each kind of block.
        """
        entry, entered = self._taps._entries.get(after), self._entered.get(after)
        if entry is None or entry.edge is None or entered is None or gradient is not self._gradients[after]:
            return _backward([(after, gradient)], tap)
        kind, holds = type(entry.block), self._taps._holds
        if holds.get(kind) is False:
            return _backward([(after, gradient)], tap)
        assert tap.edge is not None
        found = torch.autograd.grad([entry.edge], [tap.edge], [entered], retain_graph=True, allow_unused=True)[0]
        if kind not in holds:
            whole = _backward([(after, gradient)], tap)
            holds[kind] = _alike(found, whole)
            return whole
        return found

    def _replaced(self, tap: Tap, gradient: Tensor, units: Units, where: Tensor | None) -> Tensor:
        """The gradient where the value is replaced, zero where it stays."""
        if units is None and where is None:
            return gradient
        view, back = self._by_position(tap, gradient)
        kept = view if units is None else view[..., sorted(units)]
        return back(put(torch.zeros_like(view), kept, where, None if units is None else sorted(units)))

    def _product(self, tap: Tap, units: Units, gradient: Tensor) -> Float[Tensor, "prompt pos"]:
        """Gradient times change, summed over units, on the host in fp32 or better."""
        assert tap.change is not None
        key = (tap, "product")
        whole = gradient is self._gradients[tap]
        if not whole or key not in self._known:
            wide = torch.promote_types(gradient.dtype, torch.float32)
            moved = gradient.to(wide)
            if tap.weight is not None:
                moved = moved @ tap.weight.to(moved).T
            view, _ = self._by_position(tap, moved * tap.change.to(moved))
            if not whole:
                return _summed(view, units)
            self._known[key] = view
        known = self._known.get((tap, units))
        if known is None:
            known = self._known[tap, units] = _summed(self._known[key], units)
        return known

    def _by_position(self, tap: Tap, value: Tensor) -> Any:
        watch = self._taps._watch
        return by_position(value, watch.batch, watch.length, tap.module)


def _backward(later: list[tuple[Tap, Tensor]], tap: Tap) -> Tensor | None:
    """The gradient at a tap of what acts through others."""
    assert tap.edge is not None
    outputs, cotangents = [t.edge for t, _ in later if t.edge is not None], [g for _, g in later]
    return torch.autograd.grad(outputs, [tap.edge], cotangents, retain_graph=True, allow_unused=True)[0]


def _alike(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return bool((one - other).norm() <= _SAME * other.norm())


def _summed(product: Tensor, units: Units) -> Tensor:
    if units is not None:
        product = product[..., sorted(units)]
    return product.flatten(2).sum(-1).cpu()


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Inside, no parameter asks for gradients: the graph begins at the first tap and keeps no inputs for them."""
    asking = [p for p in model.parameters() if p.requires_grad]
    try:
        with interrupt_deferred():
            for p in asking:
                p.requires_grad_(False)
        yield
    finally:
        with interrupt_deferred():
            for p in asking:
                p.requires_grad_(True)
