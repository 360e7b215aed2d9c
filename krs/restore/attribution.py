"""The estimate engine: what every restoration would do, from gradients at the recipient as it is.

A restoration changes the values at its points by `δ` (donor less recipient). To first order that moves the logits by
`a = J δ`, and any measure by `gradient · a`: one forward of the donor, one of the recipient and one backward pass give
that for every layer, position, head and unit at once (attribution patching). The logit MSE is a square, so that its
change is known once `|a|²` is: `|r + a|² - |r|² = 2 r·a + |a|²` with the residual `r`. The part of `a` along `r` is
known from `r·a`; the rest is sampled: `(z·a)²` with a random `z` orthogonal to `r`, whose mean is what is wanted. A
sample costs one more backward pass for all restorations together. (Without `|a|²`, what is recovered wholly would count
twice.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from krs.errors import KrsError
from krs.generation.forward import device_of, logits_at
from krs.hooks.attribution import Answer, Taps
from krs.hooks.offload import is_offloaded
from krs.metrics.logits import logit_power
from krs.metrics.measures import LOGIT_MSE, Measure, ReferenceTokens, ScoredTokens
from krs.prompts import TokenBatch
from krs.restore.job import Chunk, Job, Progress, Values
from krs.restore.plan import Plan, Restoration

SAMPLES = 2
"""Backward passes that sample the part of the logits' change that is orthogonal to the residual."""

_FLAT = 1e-5
"""Entries of a gradient with respect to the logits that are rounding."""


class EstimateEngine:
    """Gradients at the recipient: about two passes and a few backward ones for every restoration of a plan."""

    name = "estimate"
    exact = False

    def check(self, measures: Sequence[Measure]) -> None:
        """Raise `KrsError` for measures that have no gradient; asked before anything is loaded."""
        if jumping := [m.name for m in measures if not m.differentiable]:
            raise KrsError(
                f"engine='estimate' follows gradients, and {jumping[0]!r} jumps from one whole number to the next: "
                "leave that measure out, or use engine='auto'"
            )

    def check_plan(self, plan: Plan) -> None:
        """Raise `KrsError` for points at the ends of the model; asked before any model runs."""
        if ends := [p.name for p in plan.points if p.place != "layer"]:
            raise KrsError(
                f"engine='estimate' estimates what is put into layers, and {ends[0]} is in none: leave that setting "
                "out, or use engine='auto'"
            )

    def run(self, job: Job) -> Iterator[Chunk | Progress]:
        """Yields a chunk for each run of prompts."""
        self.check(job.measures)
        self.check_plan(job.plan)
        if any(is_offloaded(body.model) for body in (job.recipient, job.donor)):
            raise KrsError(
                "engine='estimate' keeps what a backward pass needs, every weight included, and these models are "
                "offloaded: use engine='auto'"
            )
        for rows in runs(job):
            todo = job.todo(rows)
            if todo:
                yield _chunk(job.part(rows), rows, todo)
            yield Progress(_passes(job), earlier=not todo)

    def steps(self, job: Job) -> int:
        """A pass of a model each, forward or backward, for each run of prompts."""
        return _passes(job) * sum(1 for _ in runs(job))


def _passes(job: Job) -> int:
    return 2 + len(job.measures) + SAMPLES


def runs(job: Job) -> Iterator[slice]:
    """Prompts in runs whose graphs, differences and gradients fit into the budget; at least one prompt a run."""
    size = 1 if job.batch.alone else max(1, min(len(job.batch), job.budget // _bytes_per_prompt(job)))
    n = math.ceil(len(job.batch) / size)
    for part in np.array_split(np.arange(len(job.batch)), n):
        yield slice(int(part[0]), int(part[-1]) + 1)


def _bytes_per_prompt(job: Job) -> int:
    """The graph of a layer keeps some 16 states and 6 rows of coefficients a token, and an eager attention's scores."""
    config: Any = job.recipient.model.config
    wide = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    longest = max(map(len, job.batch.tokens))
    graph = 16 * config.hidden_size + 6 * wide + 2 * config.num_attention_heads * longest
    sites = 4 * wide * len({(p.role, p.kind) for p in job.plan.points})
    head: Tensor = job.recipient.model.get_output_embeddings().weight  # type: ignore[operator]
    numbers = longest * (graph * job.plan.n_layers + sites * len(job.plan.layers))
    return 4 * (numbers + 8 * job.batch.n_scored * head.shape[0])


def _chunk(job: Job, rows: slice, todo: list[int]) -> Chunk:
    every = list(job.plan)
    try:
        found = _estimate(job, [every[r] for r in todo], rows.start)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, NotImplementedError) as reason:
        raise KrsError(
            f"engine='estimate' needs gradients, and these models give none ({reason}): use engine='auto'"
        ) from reason
    return Chunk(EstimateEngine.name, todo, rows, *found)


def _estimate(job: Job, wanted: list[Restoration], first: int) -> tuple[dict[str, Values], np.ndarray]:
    batch = job.batch
    taps = Taps(job.recipient, job.donor, [(p, layer) for p in job.plan.points for layer in job.plan.layers])
    with taps.of_donor():
        donor = _scored(job, job.donor)
    with taps.of_recipient():
        attached = _scored(job, job.recipient, gradients=True)
    recipient = attached.detach()
    known = {id(job.donor): donor, id(job.recipient): recipient}
    against = known.get(id(job.reference))
    against = _scored(job, job.reference) if against is None else against
    reference = ReferenceTokens(against, batch.target_ids.to(recipient.device))
    where = {r.positions: batch.where(r.positions) for r in wanted}

    def contributions(cotangent: Tensor) -> np.ndarray:
        """What each restoration adds to `(logits * cotangent).sum()`, `[restoration, prompt]`."""
        scale = float(cotangent.abs().max()) or 1.0  # so that half precision does not underflow
        answer = taps.ask(attached, (cotangent / scale).to(attached))
        return scale * np.stack([_moved(answer, r, where[r.positions]) for r in wanted])

    values = {}
    for m in job.measures:
        own, given = (m(ScoredTokens(x, reference)).cpu().double().numpy() for x in (recipient, donor))
        if m == LOGIT_MSE:
            change = _of_squares(recipient.float() - against.float(), contributions, batch, first)
        else:
            change = contributions(_gradient(m, recipient, reference, job.recipient is job.reference))
        values[m.name] = Values(_shared_out(change, own, given, batch), own, given)
    return values, logit_power(against).cpu().numpy()


def _scored(job: Job, body: Any, gradients: bool = False) -> Tensor:
    """Logits of the scored tokens, prompt after prompt, `[token, vocab]`, where the recipient is."""
    batch = job.batch
    logits = logits_at(body.model, batch.inputs(device_of(body.model)), batch.scored_index(), gradients)
    with torch.set_grad_enabled(gradients):
        mask = torch.as_tensor(batch.mask, device=logits.device)
        return logits[mask][:, : job.vocabulary_rows].to(device_of(job.recipient.model))


def _moved(answer: Answer, restoration: Restoration, where: Tensor | None) -> np.ndarray:
    """Of one restoration, `[prompt]`: the sum over its layers."""
    points, named = restoration.setting.points, restoration.positions
    parts = [answer.of(points, layer, where, named) for layer in restoration.window.layers]
    return torch.stack(parts).double().sum(0).numpy()


def _gradient(m: Measure, logits: Tensor, reference: ReferenceTokens, at_reference: bool) -> Tensor:
    """Of a measure's sum over tokens, with respect to the logits."""
    with torch.enable_grad():
        leaf = logits.detach().float().requires_grad_()
        value = m.function(ScoredTokens(leaf, reference))
        found = None
        if isinstance(value, Tensor) and value.requires_grad:
            (found,) = torch.autograd.grad(value.sum(), leaf, allow_unused=True)
    if found is None:
        raise KrsError(
            f"engine='estimate' follows gradients, and {m.name!r} has none with respect to the logits: leave that "
            "measure out, or use engine='auto'"
        )
    if at_reference and bool((found.abs() <= _FLAT).all()):
        raise KrsError(
            f"{m.name!r} is smallest where the recipient is, which is the reference here, so that its gradient says "
            "nothing: leave that measure out of a transplant's estimate, or use engine='auto'"
        )
    return found


def _of_squares(
    residual: Tensor, contributions: Callable[[Tensor], np.ndarray], batch: TokenBatch, first: int
) -> np.ndarray:
    """The change of the summed logit MSE, `(2 r·a + |a|²) / V`, `[restoration, prompt]`."""
    along = _of_prompt(batch)
    size = _by_prompt(residual.square(), along, len(batch))
    at = along.to(residual.device)
    unit = residual / size.sqrt().clamp(min=torch.finfo(torch.float32).tiny)[at, None]
    parallel = contributions(unit)
    total = 2 * parallel * size.sqrt().cpu().double().numpy() + parallel**2
    for n in range(SAMPLES):
        z = torch.cat([_random(first + i, n, batch, i, residual.shape[1]) for i in range(len(batch))]).to(residual)
        z -= unit * _by_prompt(z * unit, along, len(batch))[at, None]
        total += contributions(z) ** 2 / SAMPLES
    return total / residual.shape[1]


def _random(prompt: int, sample: int, batch: TokenBatch, i: int, vocabulary: int) -> Tensor:
    """A prompt's own direction, the same however prompts are batched."""
    drawn = torch.Generator().manual_seed(SAMPLES * prompt + sample)
    return torch.randn(len(batch.scored[i]), vocabulary, generator=drawn)


def _of_prompt(batch: TokenBatch) -> Tensor:
    """Which prompt each scored token belongs to."""
    return torch.cat([torch.full((len(s),), i) for i, s in enumerate(batch.scored)])


def _by_prompt(values: Tensor, along: Tensor, prompts: int) -> Tensor:
    """Sums over a prompt's tokens and the vocabulary, `[prompt]`."""
    sums = values.sum(-1)
    return sums.new_zeros(prompts).index_add_(0, along.to(sums.device), sums)


def _shared_out(change: np.ndarray, own: np.ndarray, given: np.ndarray, batch: TokenBatch) -> np.ndarray:
    """Each prompt's change as numbers of its tokens: in proportion to how far these are from the donor's.

    A gradient says what becomes of a prompt's sum, not of which token.
    """
    along = _of_prompt(batch).numpy()
    apart = np.abs(given - own)
    counts, sums = np.bincount(along), np.bincount(along, weights=apart)
    safe = np.where(sums > 0, sums, 1)
    share = np.where(sums[along] > 0, apart / safe[along], 1 / counts[along])
    return own + change[:, along] * share
