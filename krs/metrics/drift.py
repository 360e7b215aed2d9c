"""How far training has moved the weights, component by component and layer by layer.

It answers the last section of Hong et al. (EMNLP 2024), where unembedding and norms keep a cosine above 0.999, for
any pair.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from krs._typing import Axes, DataFrame
from krs.errors import KrsError
from krs.hooks.anatomy import Anatomy
from krs.hooks.components import COMPONENTS, component_of
from krs.hooks.context import plain_numerics
from krs.hooks.finite import REMEDY
from krs.hooks.unwrap import is_adapter, outside
from krs.metrics.paired_weights import paired_weights
from krs.models.devices import summable
from krs.models.given import Model, load_given
from krs.models.lineage import check_roles
from krs.models.pair import Vocabulary, check_pair
from krs.notebook import as_html
from krs.wording import as_text


@dataclass(frozen=True, repr=False)
class Drift:
    """What `drift` found.

    Attributes:
        frame: tidy: `component, layer, cosine, relative_change, identical, parameters, norm, change`, a row a component
            and layer (`layer` is -1 outside the layers). `cosine` is that of all its weights as one vector,
            `relative_change` the norm of their change over their vanilla norm (NaN where that is 0), `identical` the
            share that is bit for bit the same; `norm` and `change` are the two norms.
        tied: whether the head is the embedding.
    """

    frame: DataFrame
    tied: bool

    def by_component(self) -> DataFrame:
        """One row a component, layers together: the smallest cosine of a layer, and the rest over all weights."""
        import numpy as np

        rows = self.frame.assign(
            changed=_changes(self.frame) ** 2,
            whole=self.frame.norm**2,
            same=self.frame.identical * self.frame.parameters,
        )
        total = rows.groupby("component", sort=False)[["changed", "whole", "same", "parameters"]].sum()
        total["cosine_min"] = rows.groupby("component", sort=False)["cosine"].min()
        total["relative_change"] = np.sqrt(total.changed / total.whole.where(total.whole > 0))
        total["identical"] = total.same / total.parameters
        return total[["cosine_min", "relative_change", "identical", "parameters"]]

    def plot(self, value: str = "relative_change", ax: Axes | None = None) -> Axes:
        """A heat map of `value`, components over layers; returns the axes."""
        from krs.plots import plot_drift

        return plot_drift(self, value, ax)

    def __repr__(self) -> str:
        return f"{self._headline()}\n{as_text(self.by_component(), 8)}"

    def _repr_html_(self) -> str:
        return as_html(self._headline(), self.by_component(), number="z.8f")

    def _headline(self) -> str:
        return f"Drift{' (the head is the embedding)' if self.tied else ''}"


@plain_numerics()
def drift(
    vanilla: Model,
    unlearned: Model,
    *,
    vocabulary: Vocabulary = "same",
    device: str | torch.device = "auto",
    dtype: torch.dtype | str = "auto",
    device_map: Any = None,
) -> Drift:
    """Compare two models' weights.

    >>> import krs
    >>> vanilla, _ = krs.load("smollm2")
    >>> unlearned, _ = krs.load("smollm2")       # stands in for one that was unlearned: one layer's keys are disturbed
    >>> _ = unlearned.model.layers[29].mlp.up_proj.weight.data.mul_(1.5)
    >>> found = krs.metrics.drift(vanilla, unlearned).by_component()
    >>> float(found.identical["norms"]), bool(found.identical["keys"] < 1)
    (1.0, True)

    Args:
        vanilla: as in `krs.sweep`.
        unlearned: as in `krs.sweep`.
        vocabulary: as in `krs.sweep`; with `"shared"`, embedding and head are compared in the rows of both models.
        device: where models given by name go, as in `krs.sweep`; `dtype` and `device_map` likewise.
        dtype: see `device`.
        device_map: see `device`.

    Weights are what the modules apply: adapters count as merging would give them, packed (quantised) weights as what
    they are unpacked to.

    Raises `KrsError` for a pair that does not belong together, for weights that only one of the models has, for
    modules that do not apply one weight to every input, and for weights that are NaN or infinite. Offloaded weights are
    read where they are, a module's at a time.
    """
    models = load_given({"vanilla": vanilla, "unlearned": unlearned}, device=device, dtype=dtype, device_map=device_map)
    v, u = check_pair(models[0][0], models[1][0], vocabulary)
    check_roles(v.model, u.model)
    return _compare(v, u)


def _compare(v: Anatomy, u: Anatomy) -> Drift:
    import pandas as pd

    sums: dict[tuple[str, int], Tensor] = {}
    for pair in paired_weights(v.model, u.model):
        if pair.tied_to != pair.full:
            continue
        name, theirs, ours = pair.full, pair.vanilla, pair.unlearned
        key = component_of(v, name)
        shared = min(len(theirs), len(ours)) if theirs.dim() else None
        found = _sums(theirs[:shared], ours[:shared])
        _require_finite(name, found)
        sums[key] = sums.get(key, torch.zeros(6, dtype=torch.float64)) + found
    tied = _is_tied(v.model) and _is_tied(u.model)
    if tied:
        sums["unembedding", -1] = sums["embedding", -1]
    rows = [
        {
            "component": component,
            "layer": layer,
            "cosine": float(dot / (a * b).sqrt()) if a > 0 and b > 0 else float("nan"),
            "relative_change": float((moved / a).sqrt()) if a > 0 else float("nan"),
            "identical": float(same / n),
            "parameters": int(n),
            "norm": float(a.sqrt()),
            "change": float(moved.sqrt()),
        }
        for (component, layer), (dot, a, b, moved, same, n) in sums.items()
    ]
    frame = pd.DataFrame(rows)
    order = {c: i for i, c in enumerate(COMPONENTS)}
    frame = frame.sort_values(["component", "layer"], key=lambda s: s.map(order) if s.name == "component" else s)
    return Drift(frame.reset_index(drop=True), tied)


def _changes(frame: DataFrame) -> Any:
    """Norms of the changes; a table that was written without them has them where the vanilla norm is not 0."""
    return frame.change if "change" in frame else frame.relative_change * frame.norm


def _is_tied(model: nn.Module) -> bool:
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()  # type: ignore[operator]
    if head is None or is_adapter(head) or is_adapter(embedding):
        return False
    return outside(head)._parameters.get("weight") is outside(embedding)._parameters.get("weight")


def _sums(a: Tensor, b: Tensor) -> Tensor:
    """Dot product, squared norms and that of the change, how many are identical, how many there are.

    Float64, a slice at a time.
    """
    total = torch.zeros(6, dtype=torch.float64)
    for x, y in _slices(a.detach().flatten(), b.detach().flatten().to(a.device)):
        same = summable((x == y).sum()).double()
        wide, other = summable(x).double(), summable(y).double()
        moved = wide - other
        found = [wide @ other, wide @ wide, other @ other, moved @ moved, same, same.new_tensor(x.numel())]
        total += torch.stack(found).cpu()
    return total


def _require_finite(name: str, sums: Tensor) -> None:
    """Raise `KrsError` where a squared norm says that a weight of either model is NaN or infinite."""
    for side, norm in (("vanilla", sums[1]), ("unlearned", sums[2])):
        if not torch.isfinite(norm):
            raise KrsError(
                f"{side} is broken: its weight {name!r} has values that are NaN or infinite, so there is no distance "
                f"to it. {REMEDY}"
            )


def _slices(a: Tensor, b: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    yield from zip(a.split(2**22), b.split(2**22), strict=True)
