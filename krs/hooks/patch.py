"""Putting values into a running model, and taking them out again without a trace."""

from __future__ import annotations

from contextlib import ExitStack
from types import TracebackType

import torch
from torch import Tensor

from krs.errors import KrsError
from krs.hooks.anatomy import anatomy
from krs.hooks.calls import CallWatch
from krs.hooks.changes import activation_change, new_weight, whole_source
from krs.hooks.ends import read_point, replace_point
from krs.hooks.families import family_for
from krs.hooks.family import Family
from krs.hooks.finite import patches_open
from krs.hooks.interrupts import interrupt_deferred
from krs.hooks.listen import on_value
from krs.hooks.points import ActivationPoint, Patch, Placement, Point, WeightPoint
from krs.hooks.weights import replace_whole


class patched:  # noqa: N801  (used like a function, as `torch.no_grad` is)
    """A context manager in which a model runs with patches applied.

    >>> import krs
    >>> from krs.hooks import patched
    >>> model, tokenizer = krs.load("smollm2")
    >>> batch = tokenizer("Hogwarts is a", return_tensors="pt")
    >>> with patched(model, krs.ATTN_OUT.at(12, positions=-1).map(lambda a: 0 * a)):
    ...     logits = model(**batch).logits
    >>> logits.shape[-1]
    49152

    Patches act in the order in which they are given, and blocks may be nested: an inner block sees what the
    outer one made. When the block ends, for whatever reason, the model is bit for bit what it was; only krs's
    own hooks are removed.

    Args:
        model: the model that runs; `generate()` works under it too.
        patches: made by `point.at(…).set(…)` or `.map(…)`.
        family: as in `krs.sweep`.

    Values of a recording go to the positions that they were recorded at. Tokens that `generate()` adds beyond
    a recording run unpatched; a forward that overlaps the recording only in part is an error.

    Raises `KrsError` on entry for points, layers, units or sources that do not fit, during the forward for
    shapes that do not, and on exit when the model ran but a patched point never fired.
    """

    def __init__(self, model: object, *patches: Patch | Placement, family: Family | str | None = None) -> None:
        if not patches:
            raise KrsError("patched(model) got no patches: pass some, such as MLP_COEF.at(27).set(acts)")
        if bare := [p for p in patches if not isinstance(p, Patch)]:
            raise KrsError(f"{bare[0]!r} is not a patch: add .set(…) or .map(…) to it")
        self._family = family
        self._body = anatomy(model, family=family)
        self._patches = tuple(p for p in patches if isinstance(p, Patch))
        self._stack: ExitStack | None = None
        self._watch = CallWatch()
        self._fired: dict[tuple[Point, int | None], int] = {}

    def __enter__(self) -> patched:
        if self._stack is not None:
            raise KrsError("this patched(…) block is open already: make a second one to nest it")
        for patch in self._patches:
            self._body.require(patch.placement.points, patch.placement.layers)
        self._fired.clear()
        self._watch = CallWatch()
        stack = ExitStack()
        try:
            with interrupt_deferred():
                stack.enter_context(patches_open(self._body.model))
                stack.enter_context(family_for(self._family))  # of models that values come from
                stack.callback(self._watch.attach(self._body.decoder).remove)
                stack.callback(torch.clear_autocast_cache)  # runs when the weights are back
                for patch in self._patches:
                    for point in patch.placement.points:
                        for layer in point.over(patch.placement.layers):
                            self._apply(patch, point, layer, stack)
                torch.clear_autocast_cache()  # autocast keeps casts of weights, and would not see the new ones
        except BaseException:
            with interrupt_deferred():
                stack.close()
            raise
        self._stack = stack
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with interrupt_deferred():
            stack, self._stack = self._stack, None
            if stack is not None:
                stack.close()
        silent = [key for key, times in self._fired.items() if not times]
        if kind is None and self._watch.calls and silent:
            raise KrsError(self._body.never_fired(*silent[0]))

    def _apply(self, patch: Patch, point: Point, layer: int | None, stack: ExitStack) -> None:
        modules = self._body.modules(point, layer)
        if isinstance(point, ActivationPoint):
            change = activation_change(patch, point, layer, self._watch, modules[0], self._body.units(point, layer))
            self._fired.setdefault((point, layer), 0)

            def act(value: Tensor) -> Tensor:
                self._fired[point, layer] += 1
                return change(value)

            stack.callback(on_value(modules, point, act).remove)
            return
        if isinstance(point, WeightPoint) and point.whole:
            stack.callback(replace_whole(modules[0], whole_source(patch, point, layer)))
            return
        rows = self._body.units(point, layer)
        for i, module in enumerate(modules):
            path = self._body.path(point, layer, i)
            new = new_weight(patch, point, layer, i, read_point(point, module, path).detach(), rows)
            stack.callback(replace_point(point, module, path, new))
