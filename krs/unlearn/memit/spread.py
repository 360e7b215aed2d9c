"""From the wanted residual stream to new value vectors, a layer at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from krs.hooks.anatomy import Anatomy
from krs.hooks.library import MLP_COEF, VALUE_VECTORS
from krs.hooks.weights import read_weight, write_weight
from krs.unlearn.memit.branch import projection_change
from krs.unlearn.memit.forward import BLOCK_OUT, read_at
from krs.unlearn.memit.moments import Covariance
from krs.unlearn.memit.places import Sited, positions_of, prompts_batch
from krs.unlearn.memit.targets import Targets


def spread(
    body: Anatomy,
    layers: Sequence[int],
    sited: Sequence[Sited],
    found: Targets,
    moments: Covariance,
    weight: float,
    shown: Any,
) -> list[dict[str, Any]]:
    """Write new value vectors into the layers, in order; returns an entry a layer for the log.

    At each layer what is still missing at the last one is divided by the number of layers left:
    `R = (z - z_current)/(layers left)`, and `ΔW = R'·[(λC + KKᵀ)⁻¹K]ᵀ`, where `R'` is the change of the projection's
    output that moves the block's output by `R`. Meng et al., 2023, Eq. 14 and 20. In float64.

    Args:
        body: the model; its output projections are changed in place.
        layers: the edited layers, from the first to the last.
        sited: requests with their prompts.
        found: what is wanted at the last layer.
        moments: C of each layer.
        weight: λ.
        shown: a bar, updated once a layer.
    """
    n_contexts = len(sited[0].places)
    places = [place for one in sited for place in one.places]
    batch, positions = prompts_batch(places), positions_of(places)
    wanted, distance = found.z.cpu().double(), (found.z - found.z0).cpu().double().norm(dim=-1)
    log = []

    def means(rows: Tensor) -> Tensor:
        return rows.cpu().double().reshape(-1, n_contexts, rows.shape[-1]).mean(1)

    for i, layer in enumerate(layers):
        values = read_at(body, batch, positions, [(MLP_COEF, layer), (BLOCK_OUT, layers[-1])])
        residual = (wanted - means(values[BLOCK_OUT, layers[-1]])) / (len(layers) - i)
        every = residual.repeat_interleave(n_contexts, dim=0)
        change = means(projection_change(body, layer, batch, positions, every))
        share = key_weights(moments[layer].matrix, means(values[MLP_COEF, layer]).T, weight)
        moved = _write(body, layer, share @ change)
        now = means(read_at(body, batch, positions, [(BLOCK_OUT, layers[-1])])[BLOCK_OUT, layers[-1]])
        left = ((wanted - now).norm(dim=-1) / distance.clamp(min=1e-30)).mean()
        log.append({"step": "spread", "layer": layer, "remaining": float(left), "relative_change": moved})
        shown.update()
    return log


def key_weights(
    moment: Float64[Tensor, "n n"], keys: Float64[Tensor, "n request"], weight: float
) -> Float64[Tensor, "n request"]:
    """`(λC + KKᵀ)⁻¹K` by Woodbury's identity: `C' = λC` is factored, and besides only a matrix as large as there are
    requests: `C'⁻¹K·(I + KᵀC'⁻¹K)⁻¹`."""
    factor = torch.linalg.cholesky(weight * moment)
    solved = torch.cholesky_solve(keys, factor)
    inner = torch.eye(keys.shape[1], dtype=torch.float64) + keys.T @ solved
    return torch.linalg.solve(inner, solved, left=False)


def _write(body: Anatomy, layer: int, change: Float64[Tensor, "n d"]) -> float:
    """Add to the value vectors; returns the change's norm over theirs."""
    (module,) = body.modules(VALUE_VECTORS, layer)
    with torch.no_grad():
        path = body.path(VALUE_VECTORS, layer)
        rows = read_weight(module, path)
        before = rows.detach().cpu().to(torch.float64, copy=True)
        write_weight(module, path, (before + change).to(rows))
    return float(change.norm() / before.norm())
