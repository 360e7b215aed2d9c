"""`z`: what the residual stream at each subject's last token should be for the objective to be met."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from krs._typing import Tokenizer
from krs.hooks.anatomy import Anatomy
from krs.hooks.overrides import override_forward
from krs.prompts import TokenBatch
from krs.unlearn.memit.config import MemitConfig
from krs.unlearn.memit.forward import BLOCK_OUT, added, behind, frozen, read_at, scored_logits
from krs.unlearn.memit.objectives import Objective
from krs.unlearn.memit.places import Sited, positions_of, prompts_batch


@dataclass(frozen=True, eq=False)
class Targets:
    """What was found for each request.

    Attributes:
        z0: the block output of the last edited layer at the subject's last token, a mean over contexts.
        z: what it should be, `z0 + δ`.
        before: the objective at `z0`, without its regularisers.
        after: the objective at `z`.
    """

    z0: Float[Tensor, "request d"]
    z: Float[Tensor, "request d"]
    before: Float[Tensor, " request"]
    after: Float[Tensor, " request"]

    def log(self) -> list[dict[str, Any]]:
        """An entry a request."""
        delta = (self.z - self.z0).norm(dim=-1)
        return [
            {
                "step": "target",
                "request": i,
                "loss_before": float(self.before[i]),
                "loss": float(self.after[i]),
                "delta_norm": float(delta[i]),
                "z0_norm": float(self.z0[i].norm()),
            }
            for i in range(len(delta))
        ]


def targets(
    body: Anatomy,
    layer: int,
    sited: Sequence[Sited],
    objective: Objective,
    config: MemitConfig,
    tokenizer: Tokenizer,
    shown: Any,
) -> Targets:
    """Optimise δ for all requests, `config.batch_size` of them at a time.

    The loss of a request is `objective + w·KL(edited ‖ unedited) + decay·‖δ‖/‖z0‖²`, the objective a mean over
    contexts and the KL at the last token of `"{subject} is a"`; after each step of Adam `‖δ‖` is clamped to
    `clamp·‖z0‖`. Requests do not act on each other, so their losses are summed.

    Args:
        body: the model, unedited.
        layer: the last edited layer, to whose output δ is added.
        sited: requests with their prompts.
        objective: what is minimised.
        config: `steps`, `step_size`, `kl_weight`, `weight_decay`, `clamp`, `batch_size`.
        tokenizer: of the target.
        shown: a bar, updated once a step.
    """
    parts = []
    with frozen(body.model):
        for start in range(0, len(sited), config.batch_size):
            chunk = _Chunk(body, layer, sited[start : start + config.batch_size], objective, config, tokenizer)
            parts.append(chunk.optimise(shown))
    joined = [torch.cat([getattr(part, name) for part in parts]) for name in ("z0", "z", "before", "after")]
    return Targets(*joined)


class _Chunk:
    """Some requests whose δ are optimised side by side."""

    def __init__(
        self,
        body: Anatomy,
        layer: int,
        sited: Sequence[Sited],
        objective: Objective,
        config: MemitConfig,
        tokenizer: Tokenizer,
    ) -> None:
        self.body, self.layer, self.objective, self.config = body, layer, objective, config
        self.block = body.layers[layer]
        places = [place for one in sited for place in one.places]
        self.n_contexts = len(sited[0].places)
        self.rows, self.positions = objective.rows(places, tokenizer), positions_of(places)
        essences = [one.essence for one in sited]
        self.essence, self.essence_positions = prompts_batch(essences), positions_of(essences)
        self.start, self.essence_start = (behind(body, b, layer) for b in (self.rows.batch, self.essence))

    def optimise(self, shown: Any) -> Targets:
        """Adam on δ of these requests."""
        config = self.config
        z0 = self._means(
            read_at(self.body, self.rows.batch, self.positions, [(BLOCK_OUT, self.layer)])[BLOCK_OUT, self.layer]
        )
        z0 = z0.float()
        with torch.no_grad():
            before = self._means(self.objective.loss(self.body, self.rows, self.layer))
            usual = torch.log_softmax(scored_logits(self.body, self.essence)[:, 0].float(), dim=-1)
        delta = torch.zeros_like(z0, requires_grad=True)
        adam = torch.optim.Adam([delta], lr=config.step_size)
        limit = config.clamp * z0.norm(dim=-1, keepdim=True)
        for _ in range(config.steps):
            adam.zero_grad()
            decay = config.weight_decay * delta.norm(dim=-1) / z0.norm(dim=-1) ** 2
            loss = self._objective(delta) + config.kl_weight * self._kl(delta, usual) + decay
            loss.sum().backward()
            adam.step()
            with torch.no_grad():
                delta *= (limit / delta.norm(dim=-1, keepdim=True).clamp(min=1e-30)).clamp(max=1.0)
            shown.update()
        with torch.no_grad():
            after = self._objective(delta)
        return Targets(z0, z0 + delta.detach(), before, after)

    def _objective(self, delta: Float[Tensor, "request d"]) -> Float[Tensor, " request"]:
        spread = delta.repeat_interleave(self.n_contexts, dim=0)
        with override_forward(self.start), added(self.block, self.positions, spread, _shape(self.rows.batch)):
            return self._means(self.objective.loss(self.body, self.rows, self.layer))

    def _kl(
        self, delta: Float[Tensor, "request d"], usual: Float[Tensor, "request vocab"]
    ) -> Float[Tensor, " request"]:
        """`KL(edited ‖ unedited)` of what follows `"{subject} is a"`."""
        shape = _shape(self.essence)
        with override_forward(self.essence_start), added(self.block, self.essence_positions, delta, shape):
            now = torch.log_softmax(scored_logits(self.body, self.essence)[:, 0].float(), dim=-1)
        return (now.exp() * (now - usual)).sum(-1)

    def _means(self, rows: Float[Tensor, "row ..."]) -> Float[Tensor, "request ..."]:
        return rows.reshape(-1, self.n_contexts, *rows.shape[1:]).mean(1)


def _shape(batch: TokenBatch) -> tuple[int, int]:
    return len(batch), max(map(len, batch.tokens))
