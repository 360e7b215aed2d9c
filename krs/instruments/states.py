"""Hidden states behind each layer at the positions that predict answers: what maps and probes are fitted on."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from krs.generation.forward import device_of, logits_at
from krs.hooks import record
from krs.hooks.library import RESID
from krs.instruments.logprobs import together
from krs.prompts import TokenBatch


@torch.no_grad()
def states_at_scored(
    model: nn.Module, batch: TokenBatch, layers: tuple[int, ...]
) -> list[Float[Tensor, "layer token d"]]:
    """For each prompt its states at the scored positions, on the CPU, in fp32 or better."""
    found: list[Tensor] = []
    for rows in together(batch, model):
        part = batch.rows(rows.start, rows.stop)
        with record(model, RESID, layers=layers) as acts:
            logits_at(model, part.inputs(device_of(model)), part.scored_index())
        for row, positions in enumerate(part.scored):
            of_layers = [acts.values_at(RESID, layer)[0][row, list(positions)] for layer in layers]
            stacked = torch.stack([s.cpu() for s in of_layers])
            found.append(stacked.to(torch.promote_types(stacked.dtype, torch.float32)))
    return found
