"""Type names of libraries that are imported only where they are used.

At run time they stand for `Any`, so that annotating with them imports nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from pandas import DataFrame
    from transformers import PreTrainedTokenizerBase as Tokenizer
else:
    Axes: TypeAlias = Any
    DataFrame: TypeAlias = Any
    Tokenizer: TypeAlias = Any

Message: TypeAlias = dict[str, str]
"""One chat message, `{"role": …, "content": …}`."""

__all__ = ["Axes", "DataFrame", "Message", "Tokenizer"]
