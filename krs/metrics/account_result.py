"""What an account of the weights found, and its file."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from krs._typing import Axes, DataFrame, Series
from krs.errors import KrsError
from krs.metrics.weight_units import ACCOUNTED, WHOLE, Place
from krs.notebook import as_html
from krs.wording import as_text, counted


@dataclass(frozen=True, repr=False, eq=False)
class Account:
    """The result of `krs.account`: which weights make the unlearned model's logits differ from the vanilla ones.

    A share is a part divided by the sum of all parts, so shares sum to 1. One can be negative: restoring those weights
    moves the logits away.

    Attributes:
        places: what was accounted for: `(component, layer, unit)`; layer -1 is outside the layers, unit -1 is what has
            no units. Units are neurons (keys, value vectors), heads (attention) or experts.
        unit_parts: float64 `[place]`, each one's part of the logit MSE, over all prompts.
        parts: float64 `[prompt, part]`, the same by prompt, units together; the order is that of `parts_of`.
        change: float64 `[place]`, its squared change `sum((v-u)²)`.
        loss: float64 `[prompt]`, what each prompt has in the logit MSE of the unlearned model; they sum to `baseline`.
        points: how many points of the line were looked at.
        tied: whether the unembedding is the embedding, and counted there.
        unrelated: the account of the unrelated prompts, if some were given.
        token_ids: for each prompt its ids and those of its answer.
        notes: what to know about these numbers.
        provenance: models, versions, dtype, time.
    """

    places: tuple[Place, ...]
    unit_parts: np.ndarray
    parts: np.ndarray
    change: np.ndarray
    loss: np.ndarray
    points: int
    tied: bool
    unrelated: Account | None = None
    token_ids: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...] = ()
    notes: tuple[str, ...] = ()
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def parts_of(self) -> list[tuple[str, int]]:
        """Component and layer of each part, in the order of the model's components."""
        return parts_of(self.places)

    @property
    def baseline(self) -> float:
        """The logit MSE of the unlearned model against the vanilla one, as `krs.sweep` has it."""
        return float(self.loss.sum())

    @property
    def error(self) -> float:
        """How far the sum of all parts is from the baseline, relative to it; NaN where that is 0."""
        return abs(float(self.parts.sum()) / self.baseline - 1) if self.baseline > 0 else float("nan")

    @property
    def by_component(self) -> Series:
        """The share of each component; they sum to 1."""
        return self._by_component(self.parts.sum(0))

    @property
    def frame(self) -> DataFrame:
        """Shares, a row a component and a column a layer; -1 is outside the layers (embedding, final norm, head)."""
        table = self.to_frame().pivot_table(
            index="component", columns="layer", values="share", sort=False, dropna=False
        )
        layers = sorted({layer for _, layer in self.parts_of}, key=lambda layer: (layer < 0, layer))
        return table[layers]

    def to_frame(self) -> DataFrame:
        """Tidy: `component, layer, part, share, share_of_change`, and `unrelated` (its share) where there is one.

        `part` is in units of the logit MSE.
        """
        import pandas as pd

        places, parts = self.parts_of, self.parts.sum(0)
        rows: dict[str, Any] = {
            "component": [component for component, _ in places],
            "layer": [layer for _, layer in places],
            "part": parts,
            "share": _shares(parts),
            "share_of_change": _shares(self._of_parts(self.change)),
        }
        if self.unrelated is not None:
            rows["unrelated"] = _shares(self.unrelated.parts.sum(0))
        return pd.DataFrame(rows)

    @property
    def share_of_change(self) -> Series:
        """The share of each component in the squared change of all weights: what a share is to be compared with."""
        return self._by_component(self._of_parts(self.change))

    def units(self, component: str, layer: int) -> Series:
        """The shares of a component's units at a layer, by number; they sum to its entry in `frame`.

        Raises `KrsError` for what has no units.
        """
        import pandas as pd

        chosen = [i for i, (c, at, unit) in enumerate(self.places) if (c, at) == (component, layer) and unit != WHOLE]
        if not chosen:
            known = dict.fromkeys(c for c, _, unit in self.places if unit != WHOLE)
            raise KrsError(
                f"units({component!r}, {layer}): this account has no units there; it has them for "
                f"{', '.join(known)}, at the layers of acc.frame"
            )
        numbers = [self.places[i][2] for i in chosen]
        shares = self.unit_parts[chosen] / self._total()
        return pd.Series(shares, index=pd.Index(numbers, name="unit"), name="share").sort_index()

    def top(self, n: int = 10, component: str | None = None) -> DataFrame:
        """The `n` units with the largest shares, of one component or of all: `component, layer, unit, share, …`."""
        import pandas as pd

        table = pd.DataFrame(self.places, columns=["component", "layer", "unit"])
        table["share"], table["share_of_change"] = self.unit_parts / self._total(), _shares(self.change)
        table = table[(table.unit != WHOLE) & ((component is None) | (table.component == component))]
        return table.sort_values("share", ascending=False, kind="stable").head(n).reset_index(drop=True)

    def interval(self, level: float = 0.95) -> tuple[Series, Series]:
        """Where `by_component` would lie for other prompts of this kind: low and high.

        The percentiles of 2,000 bootstrap samples of the prompts. Raises `KrsError` for fewer than two prompts.
        """
        if not 0 < level < 1:
            raise KrsError(f"level={level!r}: give a number between 0 and 1, such as 0.95")
        n = len(self.parts)
        if n < 2:
            raise KrsError("an interval over prompts needs at least two of them")
        counts = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=2000).astype(float)
        names = list(self.by_component.index)
        owner = np.array([names.index(component) for component, _ in self.parts_of])
        summed = np.stack([self.parts[:, owner == i].sum(1) for i in range(len(names))], axis=1)
        drawn = counts @ summed
        with np.errstate(divide="ignore", invalid="ignore"):
            drawn = drawn / drawn.sum(1, keepdims=True)
        low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=0)
        blank = self.by_component
        return blank * 0 + low, blank * 0 + high

    def plot(self, ax: Axes | None = None) -> Axes:
        """A heat map of shares, components over layers; returns the axes."""
        from krs.plots.account import draw_account

        return draw_account(*self.picture(), ax=ax)

    def save(self, path: str | Path, overwrite: bool = False) -> Path:
        """Write everything to one file (safetensors, no pickle); `krs.metrics.load_account` reads it.

        Raises `KrsError` when the file exists and `overwrite` is false.
        """
        from krs.metrics.account_file import save

        return save(self, Path(path), overwrite)

    def _total(self) -> float:
        total = float(self.parts.sum())
        return total if total != 0 else float("nan")

    def _of_parts(self, values: np.ndarray) -> np.ndarray:
        return summed(self.places, values)

    def _by_component(self, values: np.ndarray) -> Series:
        import pandas as pd

        names = [component for component, _ in self.parts_of]
        found = pd.Series(_shares(values), index=pd.Index(names, name="component"), name="share")
        return found.groupby(level=0, sort=False).sum(min_count=1)

    def picture(self) -> tuple[np.ndarray, list[str], list[int], str]:
        """What `krs.plots.account` draws: shares `[component, layer]`, names, layer numbers, a title."""
        table = self.frame
        title = f"{counted(len(self.loss), 'prompt')}, logit MSE {self.baseline:.3g}, error {self.error:.1g}"
        return table.to_numpy(dtype=float), list(table.index), [int(c) for c in table.columns], title

    def _table(self) -> DataFrame:
        table = self.by_component.to_frame()
        table["share_of_change"] = self.share_of_change
        if self.unrelated is not None:
            table["unrelated"] = self.unrelated.by_component
        return table

    def _headline(self) -> str:
        tied = ", the unembedding is the embedding" if self.tied else ""
        return (
            f"Account: logit MSE {self.baseline:.4g} over {counted(len(self.loss), 'prompt')}, "
            f"{counted(self.points, 'point')} of the line, completeness error {self.error:.1g}{tied}"
        )

    def __repr__(self) -> str:
        notes = [f"note: {note}" for note in self.notes]
        return "\n".join([self._headline(), as_text(self._table(), 3), *notes])

    def _repr_html_(self) -> str:
        return as_html(self._headline(), self._table(), (f"note: {n}" for n in self.notes))


def parts_of(places: tuple[Place, ...]) -> list[tuple[str, int]]:
    """Component and layer, each once: components in the model's order, then layers."""
    found = dict.fromkeys((component, layer) for component, layer, _ in places)
    return sorted(found, key=lambda part: (ACCOUNTED.index(part[0]), part[1]))


def summed(places: tuple[Place, ...], values: np.ndarray) -> np.ndarray:
    """Numbers of units summed into parts, along the last axis."""
    number = {part: i for i, part in enumerate(parts_of(places))}
    owner = np.array([number[component, layer] for component, layer, _ in places])
    return np.bincount(owner, weights=values, minlength=len(number))


def _shares(values: np.ndarray) -> np.ndarray:
    total = values.sum()
    return values / total if total != 0 else np.full(len(values), np.nan)
