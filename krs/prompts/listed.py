"""What a caller hands in where a list is wanted: its items, or what it is instead and what to pass."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from krs.errors import KrsError
from krs.wording import kind


def listed(given: Any, what: str, noun: str) -> list[Any]:
    """The items of `given`, which is read once.

    >>> listed((text for text in ("a", "b")), "prompts", "prompt")
    ['a', 'b']

    Args:
        given: a list, or anything else with items in an order: a generator, a Series, an array.
        what: what it was passed as.
        noun: what each item is.

    Raises `KrsError` for what has no items in an order, and for what gives other things than its items when it is
    iterated: a string, a mapping, a table.
    """
    remedy = f"pass a list of {noun}s"
    if isinstance(given, str):
        raise KrsError(f"{what} is one string: {remedy}, [{noun}]")
    if isinstance(given, bytes | bytearray):
        raise KrsError(f"{what} is bytes: decode them to text, and {remedy}")
    if isinstance(given, Path):
        raise KrsError(f"{what} is a path: read the file first, and {remedy}")
    if isinstance(given, set | frozenset):
        raise KrsError(f"{what} is a set, which has no order: {remedy}, such as sorted({what})")
    if hasattr(given, "columns") and hasattr(given, "iloc"):
        names = [str(name) for name in given.columns]
        raise KrsError(
            f"{what} is {kind(given)} with the columns {', '.join(map(repr, names))}: {remedy}, such as one "
            f"column, list(frame[{(names or [noun])[0]!r}]), or frame.to_dict('records') for pairs"
        )
    if isinstance(given, Mapping):
        raise KrsError(f"{what} is {kind(given)}: {remedy}")
    if isinstance(given, nn.Module) or hasattr(given, "apply_chat_template"):
        raise KrsError(f"{what} is {kind(given)}: {remedy}; models come first, and a tokenizer goes to tokenizer=")
    if isinstance(given, Tensor | np.ndarray) and given.ndim == 0:
        raise KrsError(f"{what} is a single number: {remedy}")
    if isinstance(given, np.ndarray):
        return list(given.tolist()) if given.dtype.kind in "OSU" else list(given)
    if isinstance(given, Tensor):
        return list(given.unbind())
    if not isinstance(given, Iterable):
        more = ", such as krs.data.as_chat(concept.questions)" if hasattr(given, "questions") else ""
        raise KrsError(f"{what} is {kind(given)}: {remedy}{more}")
    return list(given)


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number: of Python, of numpy, or a tensor that holds one."""
    if isinstance(value, Tensor | np.ndarray):
        return value.ndim == 0 and is_integer_array(value)
    return isinstance(value, Integral) and not isinstance(value, bool)


def whole(value: Any, what: str) -> int:
    """A whole number as Python has it, whoever made it; raises `KrsError` for what is none, truth values too.

    >>> whole(np.int64(3), "n_tokens")
    3
    """
    if not is_whole(value):
        raise KrsError(f"{what}={value!r}: give a whole number, which {kind(value)} is not")
    return int(value)


def is_integer_array(value: Tensor | np.ndarray) -> bool:
    """Whether an array's numbers are whole ones; truth values are none."""
    if isinstance(value, Tensor):
        return not (value.is_floating_point() or value.is_complex() or value.dtype == torch.bool)
    return value.dtype.kind in "iu"


def check_text(text: str, where: str) -> None:
    """Raise `KrsError` for a text with half a character, which no tokenizer takes."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as reason:
        raise KrsError(
            f"{where} has half a character (the lone surrogate U+{ord(text[reason.start]):04X} at {reason.start}): "
            "read its source again as UTF-8, or remove it"
        ) from None
