"""The weights of two models, each beside its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from krs.errors import KrsError
from krs.hooks.unwrap import plain_modules
from krs.hooks.weights import effective_parameters


@dataclass(frozen=True, eq=False)
class WeightPair:
    """One weight as each model applies it.

    Attributes:
        module: the path of its module, without what adapters and bridges add.
        name: its name there, `"weight"` or `"bias"`.
        vanilla: the vanilla model's; `unlearned` likewise.
        unlearned: see `vanilla`.
        tied_to: the full name of the first one that is the same parameter in both models; its own where none is.
    """

    module: str
    name: str
    vanilla: Tensor
    unlearned: Tensor
    tied_to: str

    @property
    def full(self) -> str:
        """Its name in the model, such as `"model.layers.0.mlp.down_proj.weight"`."""
        return _full(self.module, self.name)


def _full(module: str, name: str) -> str:
    return f"{module}.{name}" if module else name


def paired_weights(v: nn.Module, u: nn.Module) -> Iterator[WeightPair]:
    """Each weight of both models by name, adapters merged and packed numbers unpacked; a missing bias is zero.

    Raises `KrsError` for a weight that only one model has, or in another shape (other numbers of rows are no matter).
    """
    theirs, ours = dict(plain_modules(v)), dict(plain_modules(u))
    # Only parameters that live as long as the models are told apart by `id`: what is merged or unpacked on the way is
    # gone a step later, and the next one may get its `id`.
    live = {id(p) for model in (v, u) for p in model.parameters()}
    first: dict[tuple[int, int], str] = {}
    for path in dict.fromkeys([*theirs, *ours]):
        a, b = (effective_parameters(m[path], path) if path in m else {} for m in (theirs, ours))
        for mine, other in ((a, b), (b, a)):
            if "weight" in mine and "bias" in other:
                mine.setdefault("bias", torch.zeros_like(other["bias"]))
        for name in dict.fromkeys([*a, *b]):
            full = _full(path, name)
            if name not in a or name not in b or a[name].shape[1:] != b[name].shape[1:]:
                raise KrsError(
                    f"{full!r} is not a weight of both models, in one shape: give a model with one that was made from "
                    "it"
                )
            key = id(a[name]), id(b[name])
            tied_to = first.setdefault(key, full) if live.issuperset(key) else full
            yield WeightPair(path, name, a[name], b[name], tied_to)
