"""Does every point do what it says in this model? Three questions, asked of the model itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor, nn

from krs.errors import KrsError
from krs.hooks.anatomy import Anatomy, anatomy
from krs.hooks.context import plain_calls, plain_numerics
from krs.hooks.families import with_family
from krs.hooks.family import Family
from krs.hooks.finite import is_finite, refuse_not_finite
from krs.hooks.library import ATTN_OUT, MLP_COEF, VALUE_VECTORS
from krs.hooks.linear import is_packed
from krs.hooks.listen import on_value
from krs.hooks.patch import patched
from krs.hooks.points import ActivationPoint, Point, Setting, WeightPoint
from krs.hooks.record import record
from krs.hooks.registry import setting
from krs.hooks.unwrap import core

_TOKENS = 4
_Fired: TypeAlias = Counter[tuple[Point, int | None]]


@dataclass(frozen=True)
class SelfCheck:
    """What `self_check` found; it raises rather than return a bad one.

    Attributes:
        points: the points that were checked.
        n_layers: at each of so many layers they fired exactly once a forward.
        noop: the largest change of a logit when every value was put back onto itself.
        effect: for each point, the largest change of a logit when the point was changed.
    """

    points: tuple[Point, ...]
    n_layers: int
    noop: float
    effect: dict[str, float]


@with_family
@plain_numerics()
def self_check(
    model: object,
    points: Point | Setting | str = MLP_COEF + VALUE_VECTORS + ATTN_OUT,
    *,
    every_layer: bool = False,
    side: str = "the model",
    layers: Iterable[int] | None = None,
    family: Family | str | None = None,
) -> SelfCheck:
    """Check that points fire once a forward, that self-patching is a no-op, and that changing them matters.

    Runs the model on four arbitrary tokens, a handful of times (with `every_layer=True`, once more for each
    point and layer). Use it after `register_family`; `krs.sweep` runs it on both models.

    >>> import krs
    >>> model, _ = krs.load("smollm2")
    >>> krs.hooks.self_check(model).noop
    0.0

    Args:
        model: as in `krs.sweep`.
        points: what to check; the three built-in points if not given.
        every_layer: change each point at each layer by itself, not at all layers together.
        side: what messages call the model.
        layers: those to look at, for points that not every layer has; all of them if not given.
        family: as in `krs.sweep`.

    Raises `KrsError` that names the layer, the path and the remedy; and for logits that are NaN or infinite.
    """
    body = anatomy(model, side)
    asked = setting(points).points
    chosen = tuple(range(body.n_layers) if layers is None else layers)
    body.require(asked, chosen)
    what = Setting(tuple(p for p in asked if not (isinstance(p, WeightPoint) and p.whole)))
    if not what.points:  # a whole layer is what it is
        return SelfCheck(asked, len(chosen), 0.0, {})
    with plain_calls(body.model):
        return _checked(body, what, chosen, every_layer, side)


def _checked(body: Anatomy, what: Setting, layers: tuple[int, ...], every_layer: bool, side: str) -> SelfCheck:
    tokens = torch.arange(_TOKENS, device=body.model.get_input_embeddings().weight.device)[None]  # type: ignore[operator]
    if tokens.device.type == "meta":
        tokens = torch.arange(_TOKENS)[None]
    with record(body.model, what, layers=layers) as acts, _counted(body, what, layers) as fired:
        plain = _logits(body.model, tokens)
        if not is_finite(plain):
            refuse_not_finite(body.model, side, {"input_ids": tokens})
        _require_once(body, what, layers, fired)
    with patched(body.model, what.at(*(layers if what.has_layers else ())).set(acts)):
        again = _logits(body.model, tokens)
    noop = _difference(plain, again)
    if noop > 1e-3 * (1 + plain.abs().max().item()):
        _refuse_packed(body, what, layers)
        raise KrsError(
            f"putting {what.name} of {body.family.name} back onto itself changed the logits by {noop:.2e}: the points "
            "are not what the model uses. Correct the family with krs.hooks.register_family"
        )
    effect = {point.name: _effect(body, point, layers, every_layer, tokens, plain) for point in what.points}
    return SelfCheck(what.points, len(layers), noop, effect)


def _refuse_packed(body: Anatomy, what: Setting, layers: tuple[int, ...]) -> None:
    """Name the cause where it is packed weights that are multiplied in another way than unpacked ones."""
    places = [(p, layer, m) for p in what.points for layer in p.over(layers) for m in body.modules(p, layer)]
    for point, layer, module in places:
        if point.kind == "weight" and is_packed(core(module)):
            raise KrsError(
                f"{body.path(point, layer)!r} is packed (quantised), and multiplying by what it is unpacked to rounds "
                f"otherwise than the model does, so {point.name} cannot be put back: load both models unquantised, or "
                "leave the weight points out"
            )


def _logits(model: nn.Module, tokens: Tensor) -> Tensor:
    return model(input_ids=tokens, use_cache=False).logits.float()


def _difference(a: Tensor, b: Tensor) -> float:
    return (a - b).abs().max().item()


@contextmanager
def _counted(body: Anatomy, what: Setting, layers: tuple[int, ...]) -> Iterator[_Fired]:
    """Inside, forwards count how often each activation point fires."""
    fired: _Fired = Counter()
    with ExitStack() as handles:
        for point, layer in _activations(what, layers):

            def count(_: Tensor, key: tuple[Point, int | None] = (point, layer)) -> None:
                fired[key] += 1

            handles.callback(on_value(body.modules(point, layer), point, count).remove)
        yield fired


def _require_once(body: Anatomy, what: Setting, layers: tuple[int, ...], fired: _Fired) -> None:
    """Raise `KrsError` unless each point fired once in a forward."""
    for point, layer in _activations(what, layers):
        times = fired[point, layer]
        if times != 1:
            why = f"fired {times} times in one forward, not once" if times else "never fired"
            raise KrsError(f"{body.path(point, layer)!r} {why}. {body.never_fired(point, layer)}")


def _activations(what: Setting, layers: tuple[int, ...]) -> Iterator[tuple[ActivationPoint, int | None]]:
    for point in what.points:
        if isinstance(point, ActivationPoint):
            yield from ((point, layer) for layer in point.over(layers))


def _effect(body: Anatomy, point: Point, layers: tuple[int, ...], every: bool, tokens: Tensor, plain: Tensor) -> float:
    smallest = float("inf")
    if point.place == "embedding":
        point = replace(point, chosen=None)  # the tokens that are asked about need not be among those chosen
    for chosen in [()] if point.place != "layer" else [(layer,) for layer in layers] if every else [layers]:
        with patched(body.model, point.at(*chosen).map(_disturb)):
            change = _difference(plain, _logits(body.model, tokens))
        smallest = min(smallest, change)
        if not change > 0:
            at = point.over(chosen)[0]
            where = "" if at is None else f" at layer {at}" if every else " at every layer"
            raise KrsError(
                f"changing {point.name}{where} ({body.path(point, at)!r} …) leaves the logits as they are: "
                "it is not the module that the model uses. Correct the family with krs.hooks.register_family"
            )
    return smallest


def _disturb(value: Tensor) -> Tensor:
    return 1.5 * value + 0.1 * value.abs().mean() + 0.01
