"""What stands out in given answers, before a sweep scores them."""

from __future__ import annotations

import torch
from torch import nn

from krs.generation.forward import device_of, logits_at
from krs.prompts import Ids, TokenBatch

_ROWS = 8


def unlikely_answers(vanilla: nn.Module, batch: TokenBatch, answers: tuple[Ids, ...]) -> list[str]:
    """A note on the answers that the vanilla model would not give: fewer than half of the tokens are its likeliest.

    A restored model can only be brought back to what the vanilla one knows; of an answer that it gets wrong, recovered
    logits are no recovered knowledge. `batch` scores the positions that predict the answers' tokens.
    """
    unlike = []
    for start in range(0, len(batch), _ROWS):
        part = batch.rows(start, start + _ROWS)
        top = logits_at(vanilla, part.inputs(device_of(vanilla)), part.scored_index()).argmax(-1).cpu()
        for i, (row, answer) in enumerate(zip(top, answers[start : start + _ROWS], strict=True), start):
            if int((row[: len(answer)] == torch.tensor(answer)).sum()) * 2 < len(answer):
                unlike.append(i)
    if not unlike:
        return []
    return [
        f"{len(unlike)} of {len(answers)} given answers are not what the vanilla model says (fewer than half of their "
        f"tokens are its likeliest), the first to prompt {unlike[0]}: what it does not say, it cannot bring back"
    ]
