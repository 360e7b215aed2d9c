"""One layer of the recipient, for rows with whatever is restored in them.

The general way is a call of the layer with its modules' forwards overridden: what enters or leaves them is changed, or
another model's weights act. What is on top of it is done only where it is shown, in the base row, to give the same: a
block whose output is known is skipped, two such blocks leave an addition, and what lies before the restored module is
taken from the base row in the first layer of a window.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from krs.hooks.interventions import Intervention
from krs.hooks.overrides import ForwardOverride, override_forward
from krs.hooks.points import ActivationPoint, WeightPoint
from krs.restore.job import NotExactError
from krs.restore.wave.overrides import Branch, Change, Seen, override, replaced, scored_only, swapped
from krs.restore.wave.reference import distance, tolerance
from krs.restore.wave.runner import LayerwiseRunner
from krs.restore.wave.schedule import Interventions

ATTENTION, MLP = "attn_out_proj", "mlp_out_proj"

_ALONE = 64
"""Positions of each sequence on which a projection is called by itself, to see whether it can be."""


class LayerInterventions:
    """Builds the overrides of one layer, for each set of interventions.

    Args:
        recipient: whose layer it is; moved one layer on here.
        donor: whose values are put; moved one layer on here.
        layer: its number.
        wanted: every intervention that some row has in this layer.

    Attributes:
        before: the base row as it entered the layer.

    Raises `NotExactError` for a module that is not called exactly once, and when the base row's own values, put in
    place of what computes them, do not give the base row.
    """

    def __init__(
        self, recipient: LayerwiseRunner, donor: LayerwiseRunner, layer: int, wanted: Iterable[Intervention]
    ) -> None:
        self.recipient, self.donor, self.layer = recipient, donor, layer
        self.before = recipient.states
        self.last = layer == recipient.body.n_layers - 1
        self.scored = torch.unique(recipient.layout.scored).to(self.before.device)
        self.trim = True
        self._constants: dict[tuple[str, Interventions], Tensor | None] = {}
        sites = [i for i in wanted if isinstance(i.point, ActivationPoint)]
        self.known = self._observe(donor, sites)
        self.own = self._observe(recipient, sites)
        self.branches = {role: self._branch(role) for role in (ATTENTION, MLP) if recipient.body.has_role(role, layer)}
        self._check_replay()

    def overrides(self, interventions: Interventions) -> dict[nn.Module, ForwardOverride]:
        """What modules compute in rows with these interventions."""
        general, changes = self._general(interventions)
        for branch in self.branches.values():
            value = self._constant(branch, interventions)
            if value is None:
                continue
            target, path = branch.target, branch.target_path
            if any(branch.holds(p) and p not in (branch.terminal.path, path) for p in self._touched(interventions)):
                target, path = branch.terminal.module, branch.terminal.path  # what is touched may come behind it
            after = changes.get((path, "output")) if target is not branch.terminal.module else None
            run = branch.constant(value) if target is branch.target else branch.bare_constant(value)
            general[target] = run if after is None else override(None, run, after)
        return general | self._trimming(general)

    def started(self, interventions: Interventions) -> Tensor:
        """The row that leaves this layer when it is the first one with something restored.

        What comes before the first restored module is the base row's: the attention, if only the MLP's modules are
        touched, and the coefficients too, if only their value vectors are.
        """
        if (whole := self.whole_output(interventions)) is not None:
            return whole
        overrides = self.overrides(interventions)
        touched = self._touched(interventions)
        attention, mlp = self.branches.get(ATTENTION), self.branches.get(MLP)
        if attention is not None and mlp is not None and all(mlp.holds(path) for path in touched):
            assert attention.terminal.output is not None
            overrides[attention.target] = attention.constant(attention.terminal.output)
            if touched == {mlp.terminal.path} and all(isinstance(i.point, WeightPoint) for i in interventions):
                with override_forward(self._general(interventions)[0]):
                    value = mlp.terminal.module(mlp.terminal.inputs)
                overrides[mlp.target] = mlp.constant(value)
        with override_forward(overrides):
            return self.recipient.call(self.layer, self.before)

    def addition(self, interventions: Interventions) -> Tensor | None:
        """What a layer adds to any row when both its attention and its MLP are constants; `None` when they are not."""
        branches = list(self.branches.values())
        if len(branches) < 2 or any(b.block is None for b in branches):
            return None
        if any(self._constant(b, interventions) is None for b in branches):
            return None
        if not self._touched(interventions) <= {b.terminal.path for b in branches}:
            return None
        with override_forward(self.overrides(interventions)):
            added = self.recipient.call(self.layer, torch.zeros_like(self.before))
            there = self.recipient.call(self.layer, self.before)
        return added if distance(self.before + added, there) < tolerance(there) else None

    def whole_output(self, interventions: Interventions) -> Tensor | None:
        """The donor's layer output, where that is all that is left of the layer."""
        _, changes = self._general(interventions)
        after = changes.get(("", "output"))
        return after.constant().to(self.before) if after is not None and after.is_whole else None

    # What is seen in the base row and in the donor

    def _observe(self, runner: LayerwiseRunner, sites: list[Intervention]) -> dict[str, Seen]:
        """Move a model one layer on, noting what passes at the sites and at the ends of attention and MLP."""
        body = runner.body
        paths = {path for i in sites for path in body.paths(i.point, self.layer)}
        for role in (ATTENTION, MLP):
            if body.has_role(role, self.layer):
                there = body.role_paths(role, self.layer)
                paths |= {*there, *(p.rpartition(".")[0] for p in there)} - {""}
        if any(i.point.role == "." for i in sites):
            paths.add("")
        module = body.layers[self.layer]
        seen = {path: Seen(module.get_submodule(path), path) for path in sorted(paths)}
        with override_forward({s.module: s.note for s in seen.values()}):
            runner.states = runner.call(self.layer, runner.states)
        for i in sites:
            for path in body.paths(i.point, self.layer):
                if seen[path].calls != 1:
                    raise NotExactError(f"{path!r} in layer {self.layer} is called {seen[path].calls} times a forward")
        return seen

    def _branch(self, role: str) -> Branch:
        (path,) = self.recipient.body.role_paths(role, self.layer)
        terminal = self.own[path]
        if terminal.calls != 1:
            raise NotExactError(f"{path!r} in layer {self.layer} is called {terminal.calls} times a forward")
        branch = Branch(terminal, path.rpartition(".")[0])
        around = self.own.get(branch.inside) if branch.inside else None
        if around is not None and around.calls == 1 and _equal(around.output, terminal.output):
            branch.block, branch.block_returned = around.module, around.returned
        return branch

    # The general way

    def _general(
        self, interventions: Interventions
    ) -> tuple[dict[nn.Module, ForwardOverride], dict[tuple[str, str], Change]]:
        """Overrides at every module that is touched, and the changes that they make, by path and side."""
        body = self.recipient.body
        layer = body.layers[self.layer]
        changes: dict[tuple[str, str], Change] = {}
        runs: dict[str, ForwardOverride] = {}
        for i in sorted(interventions, key=lambda i: i.point.name):
            if isinstance(i.point, ActivationPoint):
                (path,) = body.paths(i.point, self.layer)
                seen = self.known[path]
                donor = seen.inputs if i.point.side == "input" else seen.output
                assert donor is not None
                change = changes.setdefault(
                    (path, i.point.side), Change(self.recipient.layout, layer.get_submodule(path))
                )
                change.items.append((i, donor.to(self.before.device), body.units(i.point, self.layer)))
            else:
                runs |= self._weights(i)
        found: dict[nn.Module, ForwardOverride] = {}
        for path in dict.fromkeys([*(path for path, _ in changes), *runs]):
            made = override(changes.get((path, "input")), runs.get(path), changes.get((path, "output")))
            found[layer.get_submodule(path)] = made
        return found, changes

    def _weights(self, intervention: Intervention) -> dict[str, ForwardOverride]:
        """The donor's weights of a weight point, by the paths of the modules that apply them."""
        ours, theirs, point = self.recipient.body, self.donor.body, intervention.point
        mine, other = ours.layers[self.layer], theirs.layers[self.layer]
        found: dict[str, ForwardOverride] = {}
        if isinstance(point, WeightPoint) and point.whole:
            (root,) = ours.paths(point, self.layer)
            for path, module in mine.get_submodule(root).named_modules(prefix=root):
                if list(module.parameters(recurse=False)):
                    if any(list(child.parameters()) for child in module.children()):
                        raise NotExactError(f"{path!r} in layer {self.layer} has parameters of its own beside modules")
                    if isinstance(module, nn.Conv1d):  # of a token mixer, whose kernels are made for its weight alone
                        raise NotExactError(f"{path!r} in layer {self.layer} is a convolution that may not be called")
                    found[path] = replaced(other.get_submodule(path))
            return found
        rows = ours.units(point, self.layer)
        for path, theirs_path in zip(ours.paths(point, self.layer), theirs.paths(point, self.layer), strict=True):
            found[path] = swapped(other.get_submodule(theirs_path), mine.get_submodule(path), path, rows)
        return found

    def _touched(self, interventions: Interventions) -> set[str]:
        """Paths of the modules that are touched; of a whole layer's weights, the layer's."""
        return {path for i in interventions for path in self.recipient.body.paths(i.point, self.layer)}

    # What is known beforehand

    def _constant(self, branch: Branch, interventions: Interventions) -> Tensor | None:
        """What a branch puts out, one row, where that depends on no row's state; `None` where it does."""
        terminal = branch.terminal
        here = frozenset(i for i in interventions if terminal.path in self.recipient.body.paths(i.point, self.layer))
        here |= {i for i in interventions if isinstance(i.point, WeightPoint) and i.point.whole}
        key = (terminal.path, here)
        if key not in self._constants:
            self._constants[key] = self._computed_constant(branch, here)
        return self._constants[key]

    def _computed_constant(self, branch: Branch, here: Interventions) -> Tensor | None:
        path, module = branch.terminal.path, branch.terminal.module
        general, changes = self._general(here)
        before, after = changes.get((path, "input")), changes.get((path, "output"))
        if after is not None and after.is_whole:
            return after.constant()
        if before is None or not before.is_whole or not self._is_called_alone(branch):
            return None
        with override_forward({module: general[module]}):
            return module(before.constant())

    def _is_called_alone(self, branch: Branch) -> bool:
        """Whether the projection, called by itself on some first tokens, gives what it gave inside the layer."""
        terminal = branch.terminal
        assert terminal.inputs is not None
        assert terminal.output is not None
        some = slice(_ALONE if terminal.inputs.dim() == terminal.output.dim() == 3 else None)
        there = terminal.output[:, some]
        return distance(terminal.module(terminal.inputs[:, some]), there) < tolerance(there)

    def _trimming(self, overrides: dict[nn.Module, ForwardOverride]) -> dict[nn.Module, ForwardOverride]:
        """In the last layer: only scored positions go through the MLP and out of the attention."""
        if not self.last or not self.trim:
            return {}
        some = scored_only(self.scored, self.recipient.layout)
        mlp, attention = self.branches.get(MLP), self.branches.get(ATTENTION)
        found = [mlp.block] if mlp is not None and mlp.block is not None else []
        found += [attention.terminal.module] if attention is not None and attention.block is not None else []
        return {m: some for m in found if m not in overrides and not any(k in overrides for k in m.modules())}

    # Checks in the base row

    def _check_replay(self) -> None:
        """The base row's own values in place of what computes them have to give the base row.

        Where skipping a whole block does not, only the projection is skipped; where that does not either, the family
        says the wrong thing.
        """
        if not self._replays():
            for branch in self.branches.values():
                branch.block = None
            if not self._replays():
                raise NotExactError(f"layer {self.layer} does more with its points than use what their modules return")
        runner = self.recipient
        if self.last and (trim := self._trimming({})):
            with override_forward(trim):
                again = runner.call(self.layer, self.before)
            some, whole = (x.reshape(runner.layout.n_tokens, -1)[self.scored] for x in (again, runner.states))
            self.trim = distance(some, whole) < tolerance(again)

    def _replays(self) -> bool:
        runner, branches = self.recipient, list(self.branches.values())
        values = [b.terminal.output.clone() for b in branches if b.terminal.output is not None]
        versions = [value._version for value in values]
        with override_forward({b.target: b.constant(v) for b, v in zip(branches, values, strict=True)}):
            again = runner.call(self.layer, self.before)
        for branch, value, version in zip(branches, values, versions, strict=True):
            branch.written = value._version != version
        return distance(again, runner.states) < tolerance(again)


def _equal(a: Tensor | None, b: Tensor | None) -> bool:
    return a is not None and b is not None and a.shape == b.shape and torch.equal(a, b)
