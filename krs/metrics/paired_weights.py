"""The weights of two models, each beside its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from krs.errors import KrsError
from krs.hooks.offload import materialised
from krs.hooks.unwrap import is_adapter, plain_modules
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

    What is offloaded is in memory while its module's weights are given out, and no longer.

    Raises `KrsError` for a weight that only one model has, or in another shape (other numbers of rows are no matter).
    """
    theirs, ours = dict(plain_modules(v)), dict(plain_modules(u))
    # Only parameters that live as long as the models are told apart by `id`: what is merged or unpacked on the way is
    # gone a step later, and the next one may get its `id`; so is what is read from where it is offloaded.
    live = {id(p) for model in (v, u) for p in model.parameters() if p.device.type != "meta"}
    first: dict[tuple[int, int], str] = {}
    for path in dict.fromkeys([*theirs, *ours]):
        with ExitStack() as stack:
            a, b = (_weights(m[path], path, stack) if path in m else {} for m in (theirs, ours))
            for name in _names(path, a, b):
                key, full = (id(a[name]), id(b[name])), _full(path, name)
                tied_to = first.setdefault(key, full) if live.issuperset(key) else full
                yield WeightPair(path, name, a[name], b[name], tied_to)


def _weights(module: nn.Module, path: str, stack: ExitStack) -> dict[str, Tensor]:
    """A module's own weights; offloaded ones are read, and dropped when the stack is closed."""
    stack.enter_context(materialised(module, recurse=is_adapter(module)))
    return effective_parameters(module, path)


def _names(path: str, a: dict[str, Tensor], b: dict[str, Tensor]) -> Iterator[str]:
    """What both have, a bias of zero given to the one that has none; `KrsError` for what only one has."""
    for mine, other in ((a, b), (b, a)):
        if "weight" in mine and "bias" in other:
            mine.setdefault("bias", torch.zeros_like(other["bias"]))
    for name in dict.fromkeys([*a, *b]):
        if name not in a or name not in b or a[name].shape[1:] != b[name].shape[1:]:
            raise KrsError(
                f"{_full(path, name)!r} is not a weight of both models, in one shape: give a model with one that was "
                "made from it"
            )
        yield name
