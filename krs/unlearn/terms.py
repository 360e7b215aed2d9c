"""What a method's loss returns, looked at before it is summed: methods are also users' own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

from torch import Tensor

from krs.errors import KrsError
from krs.unlearn.sides import Side


def check_terms(name: str, terms: Any) -> dict[str, Tensor]:
    """The terms of a loss, by name; raises `KrsError` for what is no dict of floating-point scalars.

    >>> import torch
    >>> check_terms("mine", {"forget": torch.tensor(1.0)})
    {'forget': tensor(1.)}
    """
    if not isinstance(terms, Mapping) or not terms:
        found = "an empty one" if isinstance(terms, Mapping) else type(terms).__name__.replace("NoneType", "None")
        raise KrsError(
            f"{name}: loss returns a dict of terms, and this one returned {found}: return {{'forget': …}}, each term a "
            "scalar tensor"
        )
    for key, value in terms.items():
        if not isinstance(key, str):
            raise KrsError(f"{name}: loss names a term {key!r}: give it a name that is a text, such as 'forget'")
        if not isinstance(value, Tensor) or value.dim() or not value.is_floating_point():
            raise KrsError(
                f"{name}: the term {key!r} of its loss is {_shown(value)}: return a floating-point scalar, a sum over "
                "this forward's tokens divided by n_tokens of its side (or over rows, by n_rows)"
            )
    return dict(terms)


def _shown(value: object) -> str:
    """
    >>> import torch
    >>> _shown(torch.ones(2, 3)), _shown(torch.tensor(3)), _shown(0.5)
    ('a tensor of shape [2, 3]', 'a tensor of int64', '0.5 (float)')
    """
    if not isinstance(value, Tensor):
        return f"{value!r} ({type(value).__name__})"
    return f"a tensor of shape {list(value.shape)}" if value.dim() else f"a tensor of {str(value.dtype)[6:]}"


@contextmanager
def naming_needs_retain(name: str, retain: Side | None) -> Iterator[None]:
    """Inside, a loss that reads a retain side which it has not got raises a `KrsError` that says how it gets one."""
    try:
        yield
    except AttributeError as reason:
        if retain is None and reason.obj is None and reason.name in {field.name for field in fields(Side)}:
            raise KrsError(
                f"{name}: loss reads {reason.name!r} of a retain side, and there is none: set needs_retain = True in "
                "its class, and pass retain="
            ) from reason
        raise
