"""Which function is this? A digest of all that it does, so that no number of one answers for another of its name."""

from __future__ import annotations

import functools
import hashlib
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_PLAIN = (str, bytes, int, float, complex, bool, type(None), type(...), torch.dtype, torch.device)


def code_digest(function: Callable[..., Any]) -> str:
    """The same for the same function in another process, another for one that computes otherwise.

    Its code counts with that of functions in it, its defaults, what it closes over, and what it uses of its own module:
    numbers, texts, tensors, modules of parameters, functions. Of anything else its type counts, and how it prints; of
    what prints nothing of itself, which object it is, which is another one in another process.

    >>> def top(k):
    ...     return lambda logits: logits.topk(k)
    >>> code_digest(top(1)) == code_digest(top(1)), code_digest(top(1)) == code_digest(top(5))
    (True, False)
    """
    home = getattr(_inside(function), "__module__", None)
    return hashlib.blake2b(repr(_told(function, home, set())).encode(), digest_size=6).hexdigest()


def _inside(function: Any) -> Any:
    """The function that partial arguments are for."""
    return _inside(function.func) if isinstance(function, functools.partial) else function


def _told(value: Any, home: str | None, within: set[int]) -> Any:  # noqa: PLR0911
    """A value as plain tuples and texts."""
    if isinstance(value, _PLAIN):
        return type(value).__name__, repr(value)
    if id(value) in within:
        return "itself"
    within = within | {id(value)}
    if isinstance(value, functools.partial):
        return "partial", [_told(part, home, within) for part in (value.func, value.args, value.keywords)]
    if isinstance(value, types.MethodType):
        return "method", _told(value.__func__, home, within), _told(value.__self__, home, within)
    if isinstance(value, types.FunctionType):
        return _told_function(value, home, within)
    if isinstance(value, type | types.BuiltinFunctionType | types.ModuleType):
        return "named", getattr(value, "__module__", ""), getattr(value, "__qualname__", value.__name__)
    if isinstance(value, Mapping):
        return "mapping", [(_told(k, home, within), _told(v, home, within)) for k, v in value.items()]
    if isinstance(value, tuple | list):
        return "list", [_told(part, home, within) for part in value]
    if isinstance(value, set | frozenset):
        return "set", sorted(repr(_told(part, home, within)) for part in value)
    return _told_object(value, home, within)


def _told_function(function: types.FunctionType, home: str | None, within: set[int]) -> Any:
    if function.__module__ != home:  # a library's: its version stands elsewhere
        return "named", function.__module__, function.__qualname__
    codes = list(_codes(function.__code__))
    used = sorted({name for code in codes for name in code.co_names} & function.__globals__.keys())
    closed = []
    for cell in function.__closure__ or ():
        try:
            closed.append(_told(cell.cell_contents, home, within))
        except ValueError:  # not set yet
            closed.append("empty")
    return (
        [_told_code(code, home, within) for code in codes],
        _told(function.__defaults__, home, within),
        _told(function.__kwdefaults__, home, within),
        closed,
        [(name, _told(function.__globals__[name], home, within)) for name in used],
    )


def _told_code(code: types.CodeType, home: str | None, within: set[int]) -> Any:
    """What it does, without what is in functions in it."""
    constants = [c for c in code.co_consts if not isinstance(c, types.CodeType)]
    return code.co_code.hex(), code.co_names, _told(constants, home, within)


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    """A function's code, and that of functions in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


def _told_object(value: Any, home: str | None, within: set[int]) -> Any:
    from krs.models.identity import combined, named_digests, tensor_digest

    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    if isinstance(value, Tensor):
        return kind, list(value.shape), str(value.dtype), tensor_digest(value)
    if isinstance(value, np.ndarray) and value.dtype != object:
        return kind, value.shape, str(value.dtype), hashlib.blake2b(np.ascontiguousarray(value).tobytes()).hexdigest()
    if isinstance(value, nn.Module):
        return kind, combined(named_digests(value))
    if callable(value) and hasattr(value, "__dict__"):
        methods = [f for f in vars(type(value)).values() if isinstance(f, types.FunctionType)]
        return kind, _told(methods, home, within), _told(vars(value), home, within)
    return kind, repr(value)
