"""Type names of libraries that are imported only where they are used.

At run time they stand for `Any`, so that annotating with them imports nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from pandas import DataFrame, Series
    from transformers import PreTrainedTokenizerBase as Tokenizer
    from xarray import Dataset
else:
    Axes: TypeAlias = Any
    DataFrame: TypeAlias = Any
    Dataset: TypeAlias = Any
    Series: TypeAlias = Any
    Tokenizer: TypeAlias = Any

Message: TypeAlias = dict[str, str]
"""One chat message, `{"role": …, "content": …}`."""

Positions: TypeAlias = str | int | tuple[int, ...] | tuple[tuple[int, ...], ...] | None
"""Which positions of each prompt: `None` for all, the name of a part, indices, or indices for each prompt; a number is
one place on the axis of positions, counted from the first token of the answer."""

__all__ = ["Axes", "DataFrame", "Dataset", "Message", "Positions", "Series", "Tokenizer"]
