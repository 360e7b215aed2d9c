"""How far apart two ways to one number may be: nothing in float64; below it, what rounding does here and now.

Which sums round how depends on the processor, its vector width and the number of threads. So exactness is tested in
float64 (`assert_same`), and a bound in a lower precision is measured in the test itself (`assert_rounds_alike`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

EXACT = 1e-9
"""Ways to one number that agree in exact arithmetic agree to this in float64 (some 1e-16 is seen)."""

TIMES = 8
"""How many times the measured noise is still noise: it is the largest of a few dozen values, not of all there are."""


def assert_same(found: Any, expected: Any, apart: float = EXACT) -> None:
    """Equal up to rounding in float64, of which both have to be."""
    found, expected = _array(found), _array(expected)
    assert found.dtype == expected.dtype == np.float64, f"{found.dtype} and {expected.dtype}: compare in float64"
    np.testing.assert_allclose(found, expected, rtol=apart, atol=apart)


def assert_same_table(found: Any, expected: Any, apart: float = EXACT) -> None:
    """The same table: texts alike, numbers equal up to rounding in float64.

    Two threads may add up otherwise in two calls that are alike, so that not even they are equal to the bit.
    """
    from pandas.testing import assert_frame_equal

    assert_frame_equal(found, expected, rtol=apart, atol=apart)


def assert_rounds_alike(found: Any, exact: Any, others: Sequence[Any]) -> None:
    """No further from the exact value (the same weights in float64) than `TIMES` what other ways to it are.

    Args:
        others: the same in the precision of `found`, computed in another way: batched otherwise, by another engine, in
            other chunks.
    """
    found, exact = _array(found).astype(np.float64), _array(exact)
    assert exact.dtype == np.float64
    noise = max(float(np.abs(_array(other).astype(np.float64) - exact).max()) for other in others)
    assert noise > 0, "the other ways do not round: they are no measure of noise"
    np.testing.assert_allclose(found, exact, rtol=0, atol=TIMES * noise)


def _array(value: Any) -> np.ndarray:
    if isinstance(value, Tensor):
        value = value.detach()
        return value.float().numpy() if value.dtype == torch.bfloat16 else value.numpy()
    return np.asarray(value)


_FLOAT32_INSIDE = {"bloom", "gemma2", "gpt_neo", "gptj", "mpt", "qwen3_next", "qwen3_5", "qwen3_5_moe", "olmo_hybrid"}
"""Families whose attention (linear attention, router) takes float64 weights and computes a part in float32."""


class _Float64(TorchFunctionMode):
    """What is float64 is not cast to float32, as attention and losses of `transformers` and krs do by themselves."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if args and isinstance(args[0], Tensor) and args[0].dtype == torch.float64:
            if func is Tensor.float:
                return args[0]
            args = tuple(torch.float64 if a is torch.float32 else a for a in args)
            kwargs = {k: torch.float64 if a is torch.float32 else a for k, a in kwargs.items()}
        return func(*args, **kwargs)


@contextmanager
def float64_throughout(family: str | None = None) -> Iterator[None]:
    """Inside, float64 stays float64. It costs time, so with a `family` that does not need it, it does nothing."""
    with nullcontext() if family is not None and family not in _FLOAT32_INSIDE else _Float64():
        yield
