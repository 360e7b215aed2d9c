"""The linear map that a module applies, found by reading its weight or, where that is not all, by asking the module."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from krs.errors import KrsError
from krs.hooks.unwrap import core

_PLAIN = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

PLAIN_TYPES: set[type] = {nn.Parameter}
"""Types of parameters that are the numbers they say. Subclasses are not: libraries pack numbers in them."""

_ROWS = 512
"""Unit vectors that a module is asked about at once."""

_REMEDY = "load both models unquantised, with adapters merged (merge_and_unload()), or leave the weight points out"

_WIDE, _NARROW = 1e-5, 2 * torch.finfo(torch.bfloat16).eps
"""How far a map may be off, relative to `sqrt(x² @ weight²)`. In fp32 or wider: adapters compute parts in fp32 in any
model. In narrower dtypes, and for packed weights, which some kernels multiply in bf16 whatever they are asked for: two
units in the last place of bf16, more than rounding of inputs, weights and outputs makes together, and less than
rounding of activations to a byte."""


@dataclass(frozen=True, eq=False, repr=False)
class LinearMap:
    """`x @ weight + bias`, called like the module that applies it.

    Attributes:
        weight: `[in, out]`.
        bias: `[out]`, or `None`.
    """

    weight: Shaped[Tensor, "in out"]
    bias: Shaped[Tensor, " out"] | None = None

    def __call__(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
        """`[…, in] -> […, out]`, in the dtype of `x`."""
        moved = x.to(self.weight.device, self.weight.dtype)
        bias = None if self.bias is None else self.bias.to(moved)
        return nn.functional.linear(moved, self.weight.T, bias).to(x.dtype)

    def __repr__(self) -> str:
        return f"LinearMap({list(self.weight.shape)}{', bias' if self.bias is not None else ''})"


def own_map(module: nn.Module) -> LinearMap | None:
    """What a module's own parameters say; `None` where they may not be all (packed, parametrised, another class).

    Views of the parameters.
    """
    weight, bias = module._parameters.get("weight"), module._parameters.get("bias")
    if weight is None or weight.dim() != 2 or not _is_plain(weight):
        return None
    found = LinearMap(weight if is_transposed(module) else weight.T, bias)
    if is_transposed(module) or type(module).forward is nn.Linear.forward:
        return found if _forward_is_its_own(module) or agrees(found, module) else None
    return found if isinstance(module, nn.Linear) and agrees(found, module) else None


def is_packed(module: nn.Module) -> bool:
    """Whether a module (not its children) keeps numbers in another form than it computes with: quantised ones."""
    own = [p for p in module._parameters.values() if p is not None]
    if own:
        return not all(map(_is_plain, own))
    whole = [b for b in module._buffers.values() if b is not None and not b.is_floating_point() and b.dim() == 2]
    return bool(whole) and any(hasattr(module, name) for name in ("in_features", "infeatures"))


def is_transposed(module: nn.Module) -> bool:
    """GPT-2's Conv1D keeps `[in, out]`; every Linear keeps `[out, in]`."""
    return type(module).__name__ == "Conv1D"


@torch.no_grad()
def asked_map(module: nn.Module, path: str) -> LinearMap:
    """The map of a module of which only the forward is known: what it makes of zero and of each unit vector.

    Exact for packed weights: a unit vector picks a row of what they are unpacked to. Raises `KrsError` for a module
    that is not linear (activations are packed too, or the result depends on more than the input).
    """
    twin = bare_copy(module)  # some libraries repack a weight when it is first used
    n, like = widths(twin)[0], _like(twin)
    try:
        bias = twin.forward(like.new_zeros(1, n))[0]
        rows = []
        for start in range(0, n, _ROWS):
            unit = like.new_zeros(min(_ROWS, n - start), n)
            unit[torch.arange(len(unit)), torch.arange(start, start + len(unit))] = 1
            rows.append(twin.forward(unit) - bias)
        found = LinearMap(torch.cat(rows), bias if bias.any() else None)
    except (RuntimeError, TypeError, ValueError, NotImplementedError) as reason:
        holds = "a packed weight" if is_packed(core(module)) else "no plain weight"
        raise KrsError(
            f"{path} ({type(module).__name__}) holds {holds} and could not be asked what it applies ({reason}): "
            f"{_REMEDY}"
        ) from None
    if not agrees(found, twin):
        raise KrsError(
            f"{path} ({type(module).__name__}) does not apply one weight to every input (it rounds activations, or "
            f"depends on more than its input), so it has no weight to compare, read or replace: {_REMEDY}"
        )
    return found


@torch.no_grad()
def agrees(found: LinearMap, module: nn.Module) -> bool:
    """Whether the module makes the same of a few random states, to rounding."""
    x = states_for(found.weight.shape[0], found.weight)
    narrow = found.weight.dtype in (torch.bfloat16, torch.float16) or is_packed(core(module))
    return _close(module.forward(x), found, x, _NARROW if narrow else _WIDE)


def _close(out: Tensor, found: LinearMap, x: Tensor, tolerance: float) -> bool:
    """Whether `out` is what the map makes of `x`."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    weight, bias = found.weight.to(wide), None if found.bias is None else found.bias.to(wide)
    wanted = nn.functional.linear(x.to(wide), weight.T, bias)
    scale = (x.to(wide).square() @ weight.square()).sum(-1).sqrt() + (0 if bias is None else bias.norm())
    off = (out.to(wide).reshape(wanted.shape) - wanted).norm(dim=-1)
    return bool((off <= tolerance * scale).all())


def states_for(n: int, like: Tensor) -> Tensor:
    """A few states, `[batch, pos, n]`, that show whether a module rounds its activations.

    In the first ones small entries stand beside large ones, so small that a byte's steps, as wide as the large ones
    want them, make zeros of them. The others are random.
    """
    drawn = torch.Generator().manual_seed(n)
    x = torch.randn(2, 3, n, generator=drawn, dtype=torch.float64)
    small = 5 * 0.45 / 127 * x[0, :2].sign()
    small[0, 0] = small[1, ::64] = 5.0
    x[0, :2] = small
    return x.to(like.device, like.dtype)


def bare_copy(module: nn.Module) -> Any:
    """A copy in eval mode, without hooks; what accelerate keeps for offloaded weights is not copied."""
    memo = {id(hook): hook for m in module.modules() if (hook := getattr(m, "_hf_hook", None)) is not None}
    twin = copy.deepcopy(module, memo).eval()
    for part in twin.modules():
        for name in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
            getattr(part, name).clear()
        if hasattr(part, "_hf_hook"):
            for name in ("forward", "_hf_hook", "_old_forward"):
                part.__dict__.pop(name, None)
    return twin


def widths(module: nn.Module) -> tuple[int, int]:
    """How many entries a projection takes and returns, whatever it is made of.

    Raises `KrsError` when it does not say.
    """
    for one in dict.fromkeys((module, core(module))):
        for names in (("in_features", "out_features"), ("infeatures", "outfeatures")):
            found = [one.__dict__.get(name) for name in names]
            if all(isinstance(width, int) for width in found):
                return found[0], found[1]  # type: ignore[return-value]
        weight = one._parameters.get("weight")
        if weight is not None and weight.dim() == 2 and weight.is_floating_point():
            return tuple(weight.shape if is_transposed(one) else weight.T.shape)  # type: ignore[return-value]
    raise KrsError(f"{type(module).__name__} does not say how wide it is: it is no linear projection")


def _is_plain(parameter: Tensor) -> bool:
    return type(parameter) in PLAIN_TYPES and parameter.dtype in _PLAIN


def _forward_is_its_own(module: nn.Module) -> bool:
    return "forward" not in module.__dict__ or hasattr(module, "_hf_hook")


def _like(module: nn.Module) -> Tensor:
    """A tensor of the dtype and on the device that the module computes with."""
    tensors = [*module.parameters(), *module.buffers()]
    device = tensors[0].device if tensors else torch.device("cpu")
    wanted = getattr(core(module), "compute_dtype", None)
    floating = [t.dtype for t in tensors if t.dtype in _PLAIN]
    dtype = wanted if isinstance(wanted, torch.dtype) else (floating[0] if floating else torch.float32)
    return torch.empty(0, device=device, dtype=dtype)
