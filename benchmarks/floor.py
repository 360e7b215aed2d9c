"""The least that a sweep of a Llama-shaped pair has to compute, and how fast this machine multiplies matrices.

What counts: for every row of the schedule the projections that its restoration leaves to be computed, each distinct
beginning of a prompt once, no padding, nothing behind the last scored position, scored positions only in the last
layer's MLP and output projections; attention over causal pairs; the inner products of the heads, and one quadratic
form a scored token. Norms, rotations, activation functions and additions count nothing.
"""

from __future__ import annotations

import time

import torch

from krs.prompts import TokenBatch
from krs.restore.plan import Plan
from krs.restore.wave.layout import packed
from krs.restore.wave.schedule import schedule


def operations(config, plan: Plan, batch: TokenBatch) -> float:
    """Floating-point operations of the plan's unavoidable matrix products."""
    layout = packed(batch)
    n_tokens, n_scored = layout.n_tokens, len(torch.unique(layout.scored))
    d, n, heads = config.hidden_size, config.intermediate_size, config.num_attention_heads
    unit = getattr(config, "head_dim", None) or d // heads
    qkv = 2 * d * unit * (heads + 2 * config.num_key_value_heads)
    out, keys, values = 2 * heads * unit * d, 2 * d * 2 * n, 2 * n * d
    pairs = sum(
        (b.stop - b.start) * b.n_before + (b.stop - b.start) * (b.stop - b.start + 1) / 2 for b in layout.tree.branches
    )
    attend = 4 * unit * heads * pairs
    total = 0.0
    steps = schedule(plan).steps
    for layer, step in enumerate(steps):
        late = n_scored if layer == plan.n_layers - 1 else n_tokens
        attention, mlp = n_tokens * qkv + attend + late * out, late * (keys + values)
        total += 2 * (attention + mlp)  # the two models as they are
        names = [(row.parent, {i.point.name for i in row.interventions}) for row in step[1:]]
        total += late * values * any("mlp_coef" in points for _, points in names)
        for parent, points in names:
            if "attn_out" not in points and parent != 0:
                total += attention
            if "mlp_coef" not in points:
                untouched = parent == 0 and "attn_out" not in points  # the coefficients are the base's
                total += late * (values if untouched else keys + values)
    total += 3 * 2 * config.vocab_size * d * d
    return total + (len(steps[-1]) + 1) * 2 * len(layout.scored) * d * d


class BareRate:
    """How fast plain matrix products run, sampled while something else is timed, in operations a second."""

    def __init__(self, tokens: int, d: int, n: int, like: torch.Tensor) -> None:
        self.a = torch.randn(tokens, d).to(like)
        self.b = torch.randn(n, d).to(like)
        self.seconds: list[float] = []
        self.each = 2.0 * tokens * d * n
        for _ in range(3):
            self._once()

    def sample(self, times: int = 1) -> None:
        """Multiply, and remember how long it took."""
        for _ in range(times):
            self.seconds.append(self._once())

    def _once(self) -> float:
        start = time.perf_counter()
        torch.nn.functional.linear(self.a, self.b)
        if self.a.is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - start

    @property
    def rate(self) -> float:
        """Over all samples: operations by total time, so that a slow spell counts as it did for what was timed."""
        return self.each * len(self.seconds) / sum(self.seconds)


class Sampling:
    """Stands in for a progress bar: samples the bare rate as time passes, and knows how long that took."""

    def __init__(self, bare: BareRate, every: float = 0.3) -> None:
        self.bare, self.every, self.spent, self.last = bare, every, 0.0, time.perf_counter()

    def update(self, n: int = 1) -> None:
        """Sample, if the last time is long enough ago; once for each such while."""
        now = time.perf_counter()
        if now - self.last > self.every:
            self.bare.sample(int((now - self.last) / self.every))
            self.last = time.perf_counter()
            self.spent += self.last - now

    def set_postfix_str(self, text: str) -> None:
        """Say nothing."""
