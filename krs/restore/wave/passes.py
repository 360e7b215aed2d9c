"""One pass of some prompts through both models, layer by layer, with a row for each history of restorations.

Rows in which everything is restored that is to be need neither the other model nor the base any more. Once every
reference run is through and agrees, such rows go to the end by themselves, as many at a time as a layer is called with,
so that a long pass gives numbers on the way and has less in memory. For that the two models run ahead of the rows; what
they give at each layer is kept for these, or where there is no room for it made once more: at most a twenty-fifth of
the pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from krs._typing import Positions
from krs.generation.forward import final_states
from krs.hooks.anatomy import Anatomy
from krs.hooks.ends import OtherTable
from krs.hooks.interventions import Intervention
from krs.hooks.offload import is_offloaded, materialised
from krs.hooks.overrides import ForwardOverride
from krs.prompts import TokenBatch
from krs.restore.job import Job, Values
from krs.restore.plan import Restoration
from krs.restore.wave.layer import LayerInterventions
from krs.restore.wave.layout import Layout, alone
from krs.restore.wave.overrides import end_weight
from krs.restore.wave.reference import ReferenceRun, RestoredReference
from krs.restore.wave.rows import Rows
from krs.restore.wave.runner import LayerwiseRunner
from krs.restore.wave.schedule import Row, schedule
from krs.restore.wave.scorer import Ends, Scorer

_CHUNK_TOKENS = {"cpu": 3200, "cuda": 16384}
"""Tokens a layer is called with at once. On a CPU more would not fit into its cache between two operations."""

_LONG = 1
"""From how many calls a layer on numbers come on the way; a shorter pass is over soon."""

_PARTS = 4
"""Into how many parts, at least, those come that go to the end by themselves."""

_SHARE = 25


@dataclass(frozen=True, eq=False)
class Finished:
    """Numbers of some restorations.

    Attributes:
        restorations: which of the pass's.
        values: every measure.
        power: `[token]`, mean squared logit of the reference.
    """

    restorations: Sequence[int]
    values: dict[str, Values]
    power: np.ndarray


class Pass:
    """One pass of a batch through both models, layer by layer."""

    def __init__(
        self,
        job: Job,
        batch: TokenBatch,
        layout: Layout,
        restorations: Sequence[Restoration],
        checked: Sequence[int],
        positions: Mapping[Positions, Positions],
    ) -> None:
        self.job, self.batch, self.layout = job, batch, layout
        self.restorations, self.left = restorations, list(range(len(restorations)))
        self.schedule, self.n_layers = schedule(job.plan, restorations), job.plan.n_layers
        longest = telling(batch, layout)
        (self.donor, self.recipient), self.references = zip(
            *(_with_reference(body, layout, batch, longest) for body in (job.donor, job.recipient)), strict=True
        )
        donor, recipient = self.references
        where = dict(alone(batch, longest, positions).where)
        with self._tables():
            self.restored = {r: RestoredReference(restorations[r], recipient, donor, where) for r in checked}
        self.budget = job.budget
        most = max(map(len, (self.schedule.start, *self.schedule.steps))) - 1
        self.rows = Rows(self.recipient, most, self._rows_at_once())
        self.ends = [max((n for n in r.window.layers if r.at(n)), default=-1) for r in restorations]
        self.finals: Ends | None = None
        self.tail: dict[nn.Module, ForwardOverride] = {}
        self.ahead: dict[int, LayerInterventions] = {}

    def run(self, scorer: Scorer) -> Iterator[int | Finished]:
        """Go through the layers; yields how many rows have been moved on by how many layers, and numbers."""
        layers = self.n_layers
        self._embed()
        early = self._from_which_on()
        for layer in range(layers):
            self._layer(layer, self.schedule.steps[layer])
            yield len(self.schedule.steps[layer])
            if early <= layer < layers - 1:
                yield from self._finish(layer, scorer)
            if not self.left:
                return
        at = dict(zip(self.left, self.schedule.at[-1], strict=True))
        for r, reference in self.restored.items():
            reference.compare(self.rows.of(at[r]).reshape(self.layout.n_tokens, -1))
        yield self._values(scorer, {r: partial(self._row, row) if row else None for r, row in at.items()})

    # Numbers on the way

    def _from_which_on(self) -> int:
        """Behind which layer rows may go to the end by themselves; no layer at all where that is not worth it."""
        never = n = self.n_layers
        checked = max((self.ends[r] for r in self.restored), default=never)
        ends = self.schedule.at[-1]
        if any(not ends[r] for r in self.restored):  # of the unembedding alone: it is the base to the end
            return never
        calls = len(self.restorations) * self.layout.n_tokens / per_device(_CHUNK_TOKENS, self.recipient.states.device)
        if calls < _LONG or any(is_offloaded(body.model) for body in (self.job.donor, self.job.recipient)):
            return never
        once_more = 0 if self._can_keep(n - 1 - checked) else 2 * (n - 1 - checked)
        return checked if once_more * _SHARE <= self.schedule.layer_runs else never

    def _can_keep(self, layers: int) -> bool:
        """Whether what rows leave of their half of the budget holds what both models give at so many layers."""
        d, n = _widths(self.recipient.body)
        each = (2 * (n + 6 * d) + d) * self.layout.n_tokens * self.rows.stack.element_size()
        return layers * each <= self.budget // 2 - self.rows.stack.nbytes

    def _finish(self, layer: int, scorer: Scorer) -> Iterator[int | Finished]:
        """Bring rows that have nothing left to restore to the end, as soon as there are enough of them."""
        at = dict(zip(self.left, self.schedule.at[layer], strict=True))
        ended: dict[int, list[int]] = {}
        for r in self.left:
            if self.ends[r] <= layer and at[r]:
                ended.setdefault(at[r], []).append(r)
        together = min(self.rows.at_once, -(-len(self.restorations) // _PARTS))
        if len(ended) < together:
            return
        parts: list[list[int]] = []
        if self.restored:
            self._run_ahead(layer, scorer)
            parts = [list(dict.fromkeys(at[r] for r in self.restored))]
        rows = [row for row in ended if not parts or row not in parts[0]]
        parts += [rows[i : i + together] for i in range(0, len(rows) - together + 1, together)]
        for part in parts:
            states = dict(zip(part, self._to_the_end(layer, part), strict=True))
            for r, reference in self.restored.items():
                reference.compare(states[at[r]].reshape(self.layout.n_tokens, -1))
            self.restored = {}
            yield self._values(
                scorer,
                {r: partial(self._at_scored, self.recipient, states[row]) for row in part for r in ended[row]},
            )
            yield len(part) * (self.n_layers - 1 - layer)
        self._go_on_without({r for part in parts for row in part for r in ended[row]}, layer)

    def _run_ahead(self, layer: int, scorer: Scorer) -> None:
        """Run the models as they are, and everything that they are compared with, to the end.

        What they give is kept for the rows that come there later; where there is no room for it, the models come back.
        """
        behind, layers = (self.recipient.states, self.donor.states), range(layer + 1, self.n_layers)
        keep = self._can_keep(len(layers))
        for n in layers:
            here = self._step(n, _wanted(self.schedule.steps[n]) if keep else [])
            if keep:
                self.ahead[n] = here
        self.tail = here.overrides(frozenset())
        self.finals = self._ends(scorer)
        self.references = ()
        if not keep:
            self.recipient.states, self.donor.states = behind

    def _to_the_end(self, layer: int, rows: Sequence[int]) -> Tensor:
        """Some rows as they leave the last layer; in the stack they stay what they are."""
        states = self.rows.copies(rows)
        last = self.n_layers - 1
        with self.recipient.attention():
            for n in range(layer + 1, last + 1):
                states = states.to(_device(self.recipient.body.layers[n]))
                self.rows.move(n, states, list(range(len(states))), self.tail if n == last else {})
        return states

    def _go_on_without(self, finished: set[int], layer: int) -> None:
        """Leave restorations out from here on."""
        before = dict(zip(self.left, self.schedule.at[layer], strict=True))
        self.left = [r for r in self.left if r not in finished]
        restorations = [self.restorations[r] for r in self.left]
        self.schedule = schedule(self.job.plan, restorations)
        self.rows.renumber({row: before[r] for r, row in zip(self.left, self.schedule.at[layer], strict=True)})

    # Layer by layer

    def _embed(self) -> None:
        """Give the rows that have another embedding what enters the first layer."""
        ours, theirs = self.recipient.body, self.donor.body
        with self._tables():
            for row in self.schedule.start[1:]:
                own, weight = end_weight(ours, theirs, row.interventions)
                table = OtherTable(own, weight)
                self.rows.add(self.recipient.starting_with(lambda _, ids, table=table: table(ids)))

    @contextmanager
    def _tables(self) -> Iterator[None]:
        """Inside, both token embeddings are in memory, if they are needed."""
        with ExitStack() as stack:
            for body in (self.recipient.body, self.donor.body) if len(self.schedule.start) > 1 else ():
                stack.enter_context(materialised(body.model.get_input_embeddings()))
            yield

    def _values(self, scorer: Scorer, rows: Mapping[int, Callable[[], Tensor] | None]) -> Finished:
        """The numbers of restorations, from what the head gets of each; of none the recipient's own."""
        with scorer.materialised():
            ends = self.finals or self._ends(scorer)
            states = [row or (lambda: ends.recipient) for row in rows.values()]
            found = ends.values(states, [self.restorations[r].at("unembedding") for r in rows])
        return Finished(list(rows), *found)

    def _ends(self, scorer: Scorer) -> Ends:
        """What the heads get of recipient, donor and reference, now that both models have left the last layer."""
        recipient, donor = (self._at_scored(r, r.states) for r in (self.recipient, self.donor))
        if self.job.reference is self.job.donor:
            reference = donor
        elif self.job.reference is self.job.recipient:
            reference = recipient
        else:
            reference = final_states(self.job.reference.model, self.batch).to(donor.device)
        return Ends(scorer, recipient, donor, reference, self.batch.target_ids)

    def _row(self, row: int) -> Tensor:
        """What the head gets of a row."""
        return self._at_scored(self.recipient, self.rows.of(row))

    def _rows_at_once(self) -> int:
        """How many rows a layer is called with: so many that its tensors stay small, under half of the budget too."""
        d, n = _widths(self.recipient.body)
        states = self.recipient.states
        each = (6 * d + 4 * n) * states.element_size()
        tokens = min(per_device(_CHUNK_TOKENS, states.device), self.budget // 2 // each)
        return max(1, round(tokens / self.layout.n_tokens))

    def _at_scored(self, runner: LayerwiseRunner, states: Tensor) -> Tensor:
        flat = states.reshape(self.layout.n_tokens, -1)
        return runner.final(flat[self.layout.scored.to(flat.device)])

    def _layer(self, layer: int, step: Sequence[Row]) -> None:
        with materialised(self.donor.body.layers[layer]), materialised(self.recipient.body.layers[layer]):
            here = self.ahead.pop(layer, None) or self._step(layer, _wanted(step))
            self.rows.advance(here, step)

    def _step(self, layer: int, wanted: Sequence[Intervention]) -> LayerInterventions:
        """Both models, and what they are compared with, one layer on."""
        for runner in (self.recipient, self.donor):
            runner.states = runner.states.to(_device(runner.body.layers[layer]))
        here = LayerInterventions(self.recipient, self.donor, layer, wanted)
        for reference in self.references:
            reference.step(layer)
        for restored in self.restored.values():
            restored.step(layer)
        return here


def _wanted(step: Sequence[Row]) -> list[Intervention]:
    """Every intervention that some row has in a layer."""
    return list(dict.fromkeys(i for row in step for i in row.interventions))


def _widths(body: Anatomy) -> tuple[int, int]:
    """The width of a state and, about, that of the MLP."""
    config: Any = body.model.config
    return config.hidden_size, getattr(config, "intermediate_size", None) or 4 * config.hidden_size


def telling(batch: TokenBatch, layout: Layout) -> int:
    """The prompt that a pass is checked against: the longest one.

    Of packed prompts, the longest one that does not lie in one piece at the very beginning: to one that does, packing
    does nothing, whatever a layer's code makes of its neighbours.
    """
    places = [] if layout.tree is None else layout.tree.places
    moved = [i for i, place in enumerate(places) if place != tuple(range(len(place)))]
    return max(moved or range(len(batch)), key=lambda i: len(batch.tokens[i]))


def _with_reference(
    body: Anatomy, layout: Layout, batch: TokenBatch, prompt: int
) -> tuple[LayerwiseRunner, ReferenceRun]:
    with materialised(body.model.get_input_embeddings()):  # type: ignore[operator]
        runner = LayerwiseRunner(body, layout)
        return runner, ReferenceRun(runner, batch, prompt)


def per_device(sizes: dict[str, int], device: torch.device) -> int:
    """The entry for a kind of device; other accelerators than those listed count as `cuda`."""
    return sizes.get(device.type, sizes["cuda"])


def _device(layer: nn.Module) -> torch.device:
    """Where a layer's weights are while it is materialised."""
    return next(p.device for p in layer.parameters())
