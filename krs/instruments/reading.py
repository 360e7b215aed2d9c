"""What an instrument read: a number a fact, its nulls, and how sure the mean is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from krs._typing import DataFrame


@dataclass(frozen=True, eq=False, repr=False)
class Reading:
    """One instrument on one pair of models.

    Attributes:
        instrument: its name.
        values: `[fact]`, in `unit`; NaN for a fact that the instrument says nothing about, with the reason in `notes`.
        unit: of the values.
        knows: whether a model that knows reads `"high"` or `"low"`; `None` where the values say nothing about it.
        nulls: the same instrument where the answer is known in advance, `[fact]` each, by name (see
            `krs.instruments.nulls`).
        curves: tables behind the values, such as a number a layer.
        notes: what was done differently, and what was left out.
        seconds: what it took, nulls included.
    """

    instrument: str
    values: Float[np.ndarray, " fact"]
    unit: str
    knows: Literal["high", "low"] | None
    nulls: Mapping[str, Float[np.ndarray, " null_fact"]] = field(default_factory=dict)
    curves: Mapping[str, DataFrame] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def mean(self) -> float:
        """Over the facts that there is a number for; NaN where there is none."""
        return mean(self.values)

    @property
    def knowledge(self) -> float:
        """The mean with its sign turned so that more is more knowledge; for ranks, not for reading. NaN without one."""
        if self.knows is None:
            return float("nan")
        return self.mean if self.knows == "high" else -self.mean

    def interval(self, level: float = 0.95, seed: int = 0) -> tuple[float, float]:
        """Low and high of the mean, by bootstrap over facts."""
        return interval(self.values, level, seed)

    def against(self, null: str, level: float = 0.95, seed: int = 0) -> tuple[float, float, float]:
        """The mean difference to a null with its interval; paired, fact by fact, where both have the same facts."""
        theirs = self.nulls[null]
        if null != "unrelated" and len(theirs) == len(self.values):
            paired = self.values - theirs
            return (mean(paired), *interval(paired, level, seed))
        both = [draws(v, 2000, seed + i) for i, v in enumerate((self.values, theirs))]
        low, high = np.quantile(both[0] - both[1], [(1 - level) / 2, (1 + level) / 2])
        return mean(self.values) - mean(theirs), float(low), float(high)

    def __repr__(self) -> str:
        low, high = self.interval()
        shown = ", ".join(f"{name} {mean(v):z.3g}" for name, v in self.nulls.items())
        nulls = f"; nulls: {shown}" if shown else ""
        return f"{self.instrument}: {self.mean:z.3g} [{low:z.3g}, {high:z.3g}] {self.unit}{nulls}"

    def as_json(self) -> dict[str, Any]:
        """Everything, as JSON holds it; `from_json` reads it."""
        return {
            "instrument": self.instrument,
            "values": _listed(self.values),
            "unit": self.unit,
            "knows": self.knows,
            "nulls": {name: _listed(v) for name, v in self.nulls.items()},
            "curves": {name: _split(table) for name, table in self.curves.items()},
            "notes": list(self.notes),
            "seconds": self.seconds,
        }

    @staticmethod
    def from_json(kept: Mapping[str, Any]) -> Reading:
        """What `as_json` gave."""
        return Reading(
            kept["instrument"],
            _array(kept["values"]),
            kept["unit"],
            kept["knows"],
            {name: _array(v) for name, v in kept["nulls"].items()},
            {name: _joined(t) for name, t in kept["curves"].items()},
            tuple(kept["notes"]),
            kept["seconds"],
        )


def mean(values: Float[np.ndarray, " n"]) -> float:
    """The mean of those that are numbers; NaN of none."""
    kept = values[~np.isnan(values)]
    return float(kept.mean()) if len(kept) else float("nan")


def interval(values: Float[np.ndarray, " n"], level: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """Of the mean, by bootstrap; NaN where fewer than two are numbers.

    >>> low, high = interval(np.array([0.0, 1.0, 1.0, 1.0]))
    >>> bool(0 < low < 0.75 < high <= 1)
    True
    """
    if (~np.isnan(values)).sum() < 2:
        return float("nan"), float("nan")
    low, high = np.quantile(draws(values, 2000, seed), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def draws(values: Float[np.ndarray, " n"], n: int, seed: int = 0) -> Float[np.ndarray, " draw"]:
    """Means of `n` samples with replacement of those that are numbers."""
    kept = values[~np.isnan(values)]
    chosen = np.random.default_rng(seed).integers(0, len(kept), (n, len(kept)))
    return np.asarray(kept[chosen].mean(axis=1))


def smallest_difference(values: Float[np.ndarray, " n"], level: float = 0.95, power: float = 0.8) -> float:
    """The smallest true mean that so many facts, spread as these are, would have shown with this power.

    A two-sided test at `1 - level`, in the normal approximation: `(z_level + z_power) * sd / sqrt(n)`.

    >>> round(smallest_difference(np.array([0.0, 1.0, 0.0, 1.0])), 2)
    0.81
    """
    from statistics import NormalDist

    kept = values[~np.isnan(values)]
    if len(kept) < 2:
        return float("nan")
    z = NormalDist().inv_cdf((1 + level) / 2) + NormalDist().inv_cdf(power)
    return float(z * kept.std(ddof=1) / np.sqrt(len(kept)))


def _listed(values: np.ndarray) -> list[float | None]:
    return [None if np.isnan(v) else float(v) for v in values]


def _array(kept: list[float | None]) -> np.ndarray:
    return np.array([np.nan if v is None else v for v in kept], dtype=np.float64)


def _split(table: DataFrame) -> dict[str, Any]:
    told = table.to_dict(orient="split")
    told["data"] = [[None if isinstance(v, float) and np.isnan(v) else v for v in row] for row in told["data"]]
    return {**told, "names": [table.index.name, table.columns.name]}


def _joined(kept: Mapping[str, Any]) -> DataFrame:
    import pandas as pd

    index, columns = kept.get("names", (None, None))
    data = [[np.nan if v is None else v for v in row] for row in kept["data"]]
    return pd.DataFrame(data, kept["index"], kept["columns"]).rename_axis(index=index, columns=columns)
