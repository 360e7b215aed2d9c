"""Type names of libraries that are imported only where they are used.

At run time they stand for `Any`, so that annotating with them imports nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from pandas import DataFrame, Series
    from transformers import PreTrainedTokenizerBase as Tokenizer
else:
    Axes: TypeAlias = Any
    DataFrame: TypeAlias = Any
    Series: TypeAlias = Any
    Tokenizer: TypeAlias = Any

Message: TypeAlias = dict[str, str]
"""One chat message, `{"role": …, "content": …}`."""

Positions: TypeAlias = str | tuple[int, ...] | tuple[tuple[int, ...], ...] | None
"""Which positions of each prompt: `None` for all, the name of a part, indices, or indices for each prompt."""

__all__ = ["Axes", "DataFrame", "Message", "Positions", "Series", "Tokenizer"]
