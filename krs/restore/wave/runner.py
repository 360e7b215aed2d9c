"""One model, called layer by layer with what its own decoder would call each layer with.

The decoder runs once with layers that only note their arguments (masks, position embeddings …) and hand their input on;
the caller of a runner then calls the layers, in order, as often as needed. No family needs a line of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from krs.generation.forward import accepted, device_of
from krs.hooks.anatomy import Anatomy
from krs.hooks.offload import materialised
from krs.hooks.overrides import ForwardOverride, override_forward
from krs.restore.job import NotExactError
from krs.restore.wave.attention import attending, attending_eagerly, can_pack, switches
from krs.restore.wave.layout import Layout, repeated


class _OtherFormError(Exception):
    """A layer that only hands its input on has to return a tuple in this family, or must not."""


@dataclass(frozen=True)
class _Call:
    """What the decoder passes to a layer beside the hidden states."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    by_name: bool


class LayerwiseRunner:
    """A model on one batch, a layer at a time.

    Its embeddings are looked up once, whatever the number of rows that its layers are called with.

    Attributes:
        body: the model.
        layout: how the batch lies in the tensors.
        eager: whether attention is `transformers`' plain one, whatever the model is set to.
        states: the hidden states before layer 0, `[sequence, pos, d]`; mutable: the caller moves them on.
    """

    def __init__(self, body: Anatomy, layout: Layout, *, eager: bool = False) -> None:
        self.eager = eager and can_pack(body.layers[0])
        self.body = body
        self.layout = layout
        self._switches = switches(body.model)
        self._attends = False
        self._tuples = False
        self._embedded: Tensor | None = None
        self._calls: dict[int, list[_Call]] = {}
        self.states = self._capture(1)

    def call(self, layer: int, states: Float[Tensor, "sequence pos d"], rows: int = 1) -> Tensor:
        """A layer's output for `rows` rows, whose sequences stand one after the other."""
        shared = 1 if self.layout.tree is not None else rows  # what packed rows are called with is the same for each
        if shared not in self._calls:
            self._capture(shared)
        call = self._calls[shared][layer]
        module = self.body.layers[layer]
        with self.attention():
            if call.by_name:
                out = module(*call.args, hidden_states=states, **call.kwargs)
            else:
                out = module(states, *call.args, **call.kwargs)
        return out[0] if isinstance(out, tuple) else out

    def starting_with(self, embedding: ForwardOverride) -> Float[Tensor, "sequence pos d"]:
        """What the first layer gets where the token embedding computes something else."""
        seen: list[Tensor] = []
        own, self._embedded = self._embedded, None
        try:
            with override_forward({self._table: embedding}):
                self._stubbed(1, [], seen)
        finally:
            self._embedded = own
        return seen[0]

    @property
    def _table(self) -> nn.Module:
        return self.body.model.get_input_embeddings()  # type: ignore[operator]

    def final(self, states: Float[Tensor, "*token d"]) -> Float[Tensor, "*token d"]:
        """What the head gets of a layer's output."""
        with materialised(self.norm):
            return self.norm(states)

    @contextmanager
    def attention(self) -> Iterator[None]:
        """Inside, the model attends as the layout needs it; inside that, it does already."""
        if self._attends:
            yield
            return
        with ExitStack() as stack:
            if self.eager:
                stack.enter_context(attending_eagerly(self._switches))
            if self.layout.tree is not None:
                stack.enter_context(attending(self._switches, self.layout.tree))
            self._attends = True
            try:
                yield
            finally:
                self._attends = False

    @property
    def norm(self) -> nn.Module:
        """What stands between the last layer and the head."""
        path = self.body.family.final_norm
        try:
            return self.body.model.get_submodule(path)
        except AttributeError:
            raise NotExactError(f"it has no final norm at {path!r}") from None

    def _capture(self, rows: int) -> Tensor:
        """Note what the layers are called with for so many rows; returns what the first one gets."""
        calls: list[_Call] = []
        seen: list[Tensor] = []
        try:
            out = self._stubbed(rows, calls, seen)
        except _OtherFormError:
            if self._tuples:
                raise NotExactError(
                    "its decoder does more than call its layers one after the other and a final norm"
                ) from None
            self._tuples = True
            return self._capture(rows)
        if len(calls) != self.body.n_layers:
            raise NotExactError(f"its decoder calls layers {len(calls)} times, and there are {self.body.n_layers}")
        if not torch.equal(self.final(seen[0]), out):
            raise NotExactError("what follows its last layer is more than the final norm")
        self._calls[rows] = calls
        return seen[0]

    def _stubbed(self, rows: int, calls: list[_Call], seen: list[Tensor]) -> Tensor:
        def stub(_: Any, *args: Any, **kwargs: Any) -> Any:
            by_name = "hidden_states" in kwargs
            states = kwargs.pop("hidden_states") if by_name else args[0]
            if seen and (not isinstance(states, Tensor) or states.shape != seen[0].shape):
                raise _OtherFormError
            if seen and not torch.equal(states, seen[0]):
                raise NotExactError("its decoder changes what a layer gives before the next one gets it")
            calls.append(_Call(args if by_name else args[1:], kwargs, by_name))
            seen.append(states.clone() if not seen else states)  # the decoder may write into what it is given
            return (states,) if self._tuples else states

        def embed(forward: Any, *args: Any, **kwargs: Any) -> Any:
            if self._embedded is None:
                self._embedded = forward(*args, **kwargs)
            return repeated(self._embedded, rows)

        decoder, device = self.body.decoder, device_of(self.body.model)
        given = {name: value.to(device) for name, value in self.layout.repeated(rows).items()}
        with override_forward({**dict.fromkeys(self.body.layers, stub), self._table: embed}), self.attention():
            try:
                out = decoder(**accepted(decoder, given), use_cache=False)[0]
            except NotImplementedError:
                raise NotExactError("its decoder is a container that cannot be called by itself") from None
        if out.shape != seen[0].shape:
            raise _OtherFormError
        return out
