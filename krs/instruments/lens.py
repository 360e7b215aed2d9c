"""What the states inside say: the right answer read off behind each layer, by the model's own norm and head."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import nn

from krs.errors import KrsError
from krs.generation.forward import head_logits
from krs.hooks.anatomy import Anatomy, anatomy
from krs.hooks.finite import is_finite
from krs.hooks.offload import materialised
from krs.instruments.case import Asked, Case
from krs.instruments.instrument import Instrument, register
from krs.instruments.logprobs import answer_tokens
from krs.instruments.reading import Reading
from krs.instruments.states import states_at_scored
from krs.models.devices import summable

_ROUNDING = {torch.float64: 1e-6, torch.float32: 1e-2}
_COARSE = 0.25
"""Nats a token that the lens behind the last layer may be off the model's own answer, by dtype."""


@register("logit_lens")
class LogitLens(Instrument):
    """Negative log-likelihood of the right answers read off hidden states before the last layer.

    The states behind each layer go through the model's own final norm and head (the logit lens, nostalgebraist 2020).
    The number is that of the inner layer at which the answers are likeliest: what a late layer hides is still there.
    """

    unit, knows = "nats a token", "low"
    nulls = ("same", "never_knew")
    passes = 10.0

    def lacks(self, case: Case) -> str | None:
        """A norm before the head, and a layer before the last, beside what all instruments may lack."""
        body = anatomy(case.unlearned)
        if body.n_layers == 1:
            return "needs a layer before the last"
        return "needs a norm before the head" if _final_norm(body) is None else super().lacks(case)

    def measure(self, case: Case) -> Reading:
        """Each fact's NLL at the inner layer whose mean over facts is lowest; the curve has all layers."""
        import pandas as pd

        found = _kept(case, case.unlearned)
        best = int(found[:-1].mean(axis=1).argmin())
        curve = pd.DataFrame({"unlearned": found.mean(axis=1)}).rename_axis("layer")
        return self.reading(found[best], {"NLL": curve}, (f"read behind layer {best}",))


def _kept(case: Case, model: nn.Module) -> Float[np.ndarray, "layer fact"]:
    found = case.found.setdefault(model, {})
    key = ("logit_lens", case.target)
    if key not in found:
        found[key] = lens(model, case.target)
    read: np.ndarray = found[key]
    return read


@torch.no_grad()
def lens(model: nn.Module, asked: Asked) -> Float[np.ndarray, "layer fact"]:
    """NLL of each right answer read off the states behind each layer, nats a token.

    Raises `KrsError` for a model whose last layer is read as something else than its own answer, because then it does
    more between layers and head than norm and head.
    """
    body = anatomy(model)
    norm = _final_norm(body)
    assert norm is not None
    batch, layers = asked.batch, tuple(range(body.n_layers))
    found = np.zeros((len(layers), len(batch)))
    dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
    with materialised(norm):
        at = next((p.device for p in norm.parameters()), torch.device("cpu"))
        for i, (states, targets) in enumerate(zip(states_at_scored(model, batch, layers), batch.targets, strict=True)):
            ids = torch.tensor(targets)[:, None]
            for layer, state in enumerate(states):
                logits = head_logits(body, norm(state[None].to(at, dtype)))[0]
                if not is_finite(logits):
                    raise KrsError(f"what is read behind layer {layer} is NaN or infinite: load the model in float32")
                logprob = torch.log_softmax(summable(logits).double(), -1)
                found[layer, i] = -float(logprob.gather(-1, ids.to(logprob.device)).mean())
    off = np.abs(found[-1] - answer_tokens(model, batch).nll()).max()
    if off > _ROUNDING.get(dtype, _COARSE):
        raise KrsError(
            f"states behind the last layer, by norm and head, are {off:.2g} nats off the answer of this "
            f"{type(model).__name__} itself, so it does more there: leave logit_lens out"
        )
    return found


def _final_norm(body: Anatomy) -> Any:
    try:
        return body.model.get_submodule(body.family.final_norm)
    except AttributeError:
        return None
