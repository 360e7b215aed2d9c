"""Mean and spread of arrays that come one at a time, so that no more than one of them is ever in memory."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass
class Pool:
    """Mean and standard deviation, element by element, of what is a number (Welford's way, which is exact).

    >>> pool = Pool()
    >>> for row in ([1.0, np.nan], [3.0, 5.0]):
    ...     pool.add(np.array(row))
    >>> pool.mean.tolist(), pool.sd.tolist(), pool.n.tolist()
    ([2.0, 5.0], [1.4142135623730951, nan], [2, 1])
    """

    n: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=int))
    total: np.ndarray = field(default_factory=lambda: np.zeros(0))
    squares: np.ndarray = field(default_factory=lambda: np.zeros(0))
    """The mean so far, and the sum of squared distances to it."""

    def add(self, values: np.ndarray) -> None:
        """One more array; all have one shape."""
        there = ~np.isnan(values)
        self.join(Pool(there.astype(int), np.where(there, values, 0.0), np.zeros(values.shape)))

    def join(self, other: Pool) -> None:
        """Everything that another has been given."""
        if not self.n.size:
            self.n, self.total, self.squares = other.n.copy(), other.total.copy(), other.squares.copy()
            return
        n = self.n + other.n
        some = np.maximum(n, 1)
        apart = other.total - self.total
        self.squares = self.squares + other.squares + apart**2 * self.n * other.n / some
        self.total = self.total + apart * other.n / some
        self.n = n

    @property
    def mean(self) -> np.ndarray:
        """NaN where there is no number."""
        return np.where(self.n > 0, self.total, np.nan)

    @property
    def sd(self) -> np.ndarray:
        """With n - 1; NaN where there are fewer than two."""
        return np.where(self.n > 1, np.sqrt(self.squares / np.maximum(self.n - 1, 1)), np.nan)
