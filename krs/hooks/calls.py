"""What one forward of a model is about: how many rows and positions, and which positions they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from krs.errors import KrsError
from krs.hooks.values import by_position

CACHES = ("cache", "past_key_values")
"""What transformers calls the key-value cache, as an argument and in what a model returns: from 5.24 on, and before."""


class CallWatch:
    """Notes, as each forward of a decoder begins, its batch size, its length and its first position.

    Under `generate()` with a key-value cache a forward gets only the new tokens; `offset` says where in
    the whole sequence they stand.
    """

    def __init__(self) -> None:
        self.calls = 0
        self.batch = 0
        self.length = 0
        self.offset = 0

    def attach(self, decoder: nn.Module) -> RemovableHandle:
        """Start watching; the caller removes the handle that is returned."""
        return decoder.register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tokens = kwargs.get("input_ids")
        if tokens is None:
            tokens = kwargs.get("inputs_embeds")
        if tokens is None and args:
            tokens = args[0]
        if not isinstance(tokens, Tensor):
            raise KrsError("the model was called without input_ids or inputs_embeds")
        self.calls += 1
        self.batch, self.length = tokens.shape[:2]
        past = next((kwargs[name] for name in CACHES if kwargs.get(name) is not None), None)
        self.offset = int(past.get_seq_length()) if past is not None else 0

    def by_position(self, value: Tensor, module: nn.Module) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """A module's value as `[batch, position, …, unit]`, and the way back; see `krs.hooks.values.by_position`."""
        return by_position(value, self.batch, self.length, module)
