"""One prompt beside a pass, run through the models as anyone would call them, with hooks, for the pass to agree with.

How far it may be off follows from the dtype; where that is not enough, it is measured on the spot: the same prompt,
batched in another way, shows what rounding does to the states of this model in this dtype, layer by layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from krs._typing import Positions
from krs.hooks.interventions import Intervention
from krs.hooks.listen import on_value
from krs.hooks.patch import patched
from krs.hooks.points import ActivationPoint, Setting, WeightPoint
from krs.hooks.values import by_position
from krs.hooks.weights import read_weight, replace_weight, replace_whole
from krs.prompts import TokenBatch
from krs.restore.job import NotExactError
from krs.restore.plan import Restoration
from krs.restore.wave.layout import alone, in_company
from krs.restore.wave.runner import LayerwiseRunner

_TIMES = 3.0
"""How many times as far as rounding moves a state the pass may be from the reference."""

_FLOOR = {"half": (2.0, 8.0), "single": (64.0, 512.0)}
"""Of the median token and of any token, in units of the dtype's epsilon: what rounding may do even where it was seen to
do less. Some models compute in fp32 inside whatever their dtype, so that float64 is judged as fp32 is."""


@dataclass(frozen=True)
class Allowed:
    """How far states of tokens may be off and still be equal up to rounding, relative to their size."""

    median: float
    largest: float

    def hold(self, found: Tensor) -> bool:
        """Whether distances are within it, the median token and each one by itself."""
        return bool((found.median() <= self.median) & (found <= self.largest).all())


def _anyway(states: Tensor) -> Allowed:
    """What rounding may do to states of their dtype, whatever it was seen to do."""
    eps, most = max(torch.finfo(states.dtype).eps, torch.finfo(torch.float32).eps), tolerance(states)
    return Allowed(*(min(least * eps, most) for least in _FLOOR["half" if states.dtype.itemsize < 4 else "single"]))


def _seen(noise: Tensor, states: Tensor) -> Allowed:
    """From the distances that rounding made; beyond a dtype's bound it is not rounding: the model minds its company."""
    most, anyway = tolerance(states), _anyway(states)
    found = ((noise.median(), anyway.median), (noise.max(), anyway.largest))
    return Allowed(*(min(max(_TIMES * float(distance), least), most) for distance, least in found))


class ReferenceRun:
    """One prompt of a model by itself, layer by layer.

    Where a pass is further from it than rounding may be anyway, the same prompt is run in company, which shows what
    rounding does here.

    Attributes:
        runner: the model on the prompt alone.
        places: where the pass has the prompt's tokens, among `sequence * pos`.
    """

    def __init__(self, runner: LayerwiseRunner, batch: TokenBatch, prompt: int) -> None:
        self.beside = runner
        self.runner = LayerwiseRunner(runner.body, alone(batch, prompt))
        self.company = LayerwiseRunner(runner.body, in_company(batch, prompt), eager=True)
        self.length = max(batch.scored[prompt]) + 1
        self.scored = torch.tensor(batch.scored[prompt])
        length = runner.layout.shape[1]
        tree = runner.layout.tree
        self.places = torch.tensor(tree.places[prompt] if tree else range(prompt * length, (prompt + 1) * length))
        self.places = self.places[: self.length]
        self.before = self.runner.states
        self.done = self.done_in_company = 0

    def step(self, layer: int) -> None:
        """One layer on; raises `NotExactError` where the pass's states of the same tokens are others."""
        self.before = self.runner.states
        self.runner.states = self.runner.call(layer, self.before)
        self.done = layer + 1
        mine = self.runner.states[0, : self.length]
        flat = self.beside.states.reshape(self.beside.layout.n_tokens, -1)
        theirs = flat[self.places.to(flat.device)].to(mine.device)
        if not self.allows(distances(theirs, mine)):
            raise NotExactError(f"states after layer {layer} are not those of a prompt by itself")

    def allows(self, found: Tensor) -> bool:
        """Whether states after the layer last run may be so far off and still be equal up to rounding."""
        mine = self.runner.states[0, : self.length]
        return _anyway(mine).hold(found) or _seen(self._noise(mine), mine).hold(found)

    def _noise(self, mine: Tensor) -> Tensor:
        """How far rounding moves the states after the layer last run, `[token]`."""
        for layer in range(self.done_in_company, self.done):
            self.company.states = self.company.call(layer, self.company.states)
        self.done_in_company = self.done
        return distances(self.company.states[0, : self.length], mine)


class RestoredReference:
    """One restoration of that prompt, by hooks, layer by layer.

    Args:
        restoration: what is restored.
        recipient: the reference run of the model that it is restored in.
        donor: the reference run of the other.
        batch: the prompts.
        prompt: which of them.
    """

    def __init__(
        self,
        restoration: Restoration,
        recipient: ReferenceRun,
        donor: ReferenceRun,
        where: Mapping[Positions, Tensor | None],
    ) -> None:
        self.restoration, self.recipient, self.donor, self.where = restoration, recipient, donor, where
        self.states = recipient.runner.states
        self.begun = bool(restoration.at("embedding"))
        if self.begun:
            points = Setting(tuple(i.point for i in restoration.at("embedding")))
            with patched(recipient.runner.body.model, points.at().set(donor.runner.body.model)):
                self.states = LayerwiseRunner(recipient.runner.body, recipient.runner.layout).states

    def step(self, layer: int) -> None:
        """One layer on; to be called after the reference runs of both models have done theirs."""
        interventions = self.restoration.at(layer)
        self.begun = self.begun or bool(interventions)
        if not self.begun:
            self.states = self.recipient.runner.states
            return
        with ExitStack() as stack:
            values = self._donor_values(layer, [i for i in interventions if isinstance(i.point, ActivationPoint)])
            for i in interventions:
                self._apply(i, layer, values, stack)
            self.states = self.recipient.runner.call(layer, self.states.to(self.recipient.runner.states.device))

    def _donor_values(self, layer: int, wanted: Sequence[Intervention]) -> dict[Intervention, Tensor]:
        """The donor's values at this layer, by running it once more with hooks."""
        found: dict[Intervention, Tensor] = {}
        runner = self.donor.runner
        with ExitStack() as stack:
            for i in wanted:

                def keep(value: Tensor, i: Intervention = i) -> None:
                    found[i] = value.clone()

                stack.callback(on_value(runner.body.modules(i.point, layer), i.point, keep).remove)  # type: ignore[arg-type]
            if wanted:
                runner.call(layer, self.donor.before)
        return found

    def _apply(self, i: Intervention, layer: int, values: dict[Intervention, Tensor], stack: ExitStack) -> None:
        ours, theirs = self.recipient.runner.body, self.donor.runner.body
        modules, units = ours.modules(i.point, layer), ours.units(i.point, layer)
        if isinstance(i.point, ActivationPoint):
            length = self.recipient.runner.layout.shape[1]

            def change(own: Tensor) -> Tensor:
                view, back = by_position(own, 1, length, modules[0])
                other, _ = by_position(values[i].to(own), 1, length, modules[0])
                return back(i.apply(view, other, self.where[i.positions], units))

            stack.callback(on_value(modules, i.point, change).remove)
            return
        others = theirs.modules(i.point, layer)
        if isinstance(i.point, WeightPoint) and i.point.whole:
            stack.callback(replace_whole(modules[0], others[0]))
            return
        for which, (module, other) in enumerate(zip(modules, others, strict=True)):
            path = ours.path(i.point, layer, which)
            new = read_weight(module, path).detach().clone()
            rows = slice(None) if units is None else list(units)
            new[rows] = read_weight(other, path).detach().to(new)[rows]
            stack.callback(partial(_call, replace_weight(module, path, new)))

    def compare(self, row: Tensor) -> None:
        """Raise `NotExactError` where a row of the pass, `[token, d]` behind the last layer, is another."""
        scored = self.recipient.scored
        mine = self.states[0, scored.to(self.states.device)]
        theirs = row[self.recipient.places[scored].to(row.device)].to(mine.device)
        apart = distances(theirs, mine)
        overflown = ~theirs.isfinite().all(-1) & ~mine.isfinite().all(-1)  # in both: the restoration itself does that
        if not self.recipient.allows(torch.where(overflown, torch.zeros_like(apart), apart)):
            name = self.restoration.setting.name
            raise NotExactError(f"{name} restored is not what hooks make of a prompt by itself")


def _call(undo: object) -> None:
    undo()  # type: ignore[operator]


def distances(a: Tensor, b: Tensor) -> Tensor:
    """How far two states of each token are apart, relative to their size, `[token]`."""
    wide = torch.promote_types(a.dtype, torch.float32)
    a, b = a.to(wide), b.to(wide)
    return (a - b).norm(dim=-1) / b.norm(dim=-1).clamp(min=1e-6)


def distance(a: Tensor, b: Tensor) -> float:
    """The largest of `distances`."""
    return distances(a, b).max().item()


_TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}


def tolerance(states: Tensor) -> float:
    """How large a `distance` may be and still be rounding of one layer, in the states' dtype."""
    return _TOLERANCE.get(states.dtype, 1e-4)
