"""Calling a model for the logits of some positions only, with everything its family needs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from krs.hooks.anatomy import Anatomy
from krs.hooks.context import plain_calls, plain_numerics
from krs.hooks.interrupts import interrupt_deferred
from krs.hooks.overrides import override_forward
from krs.hooks.rope import start_afresh
from krs.hooks.unwrap import core
from krs.prompts import TokenBatch


def device_of(model: nn.Module) -> torch.device:
    """Where the model takes its token ids."""
    weight = core(model.get_input_embeddings()).weight  # type: ignore[operator]
    assert isinstance(weight, Tensor)
    return weight.device if weight.device.type != "meta" else torch.device("cpu")


def accepted(model: nn.Module, inputs: dict[str, Any]) -> dict[str, Any]:
    """The inputs that the model's forward takes: families that need no `position_ids` do not accept them."""
    parameters = inspect.signature(model.forward).parameters
    return {name: value for name, value in inputs.items() if name in parameters}


@contextmanager
def head_at(model: nn.Module, index: Int[Tensor, "batch token"]) -> Iterator[None]:
    """Inside, the LM head gets the final states of the positions `index` only, in that order.

    The logits of the others are never computed: at a vocabulary of 50,000 they cost more than a layer.
    """

    def gather(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        states, *rest = args
        wanted = index.to(states.device)[..., None].expand(-1, -1, states.shape[-1])
        return states.gather(1, wanted), *rest

    handles = ExitStack()
    try:
        with interrupt_deferred():
            head = model.get_output_embeddings()  # type: ignore[operator]
            handles.callback(head.register_forward_pre_hook(gather).remove)
        yield
    finally:
        with interrupt_deferred():
            handles.close()


def logits_at(
    model: nn.Module, inputs: dict[str, Tensor], index: Int[Tensor, "batch token"], gradients: bool = False
) -> Float[Tensor, "batch token vocab"]:
    """The logits of one forward, at the positions `index` of each row, whatever surrounds the call.

    With `gradients`, the call leaves a graph where something in it asks for one.
    """
    with plain_numerics(), plain_calls(model), head_at(model, index), torch.set_grad_enabled(gradients):
        start_afresh(model)
        return model(**accepted(model, inputs), use_cache=False).logits


def final_states(model: nn.Module, batch: TokenBatch) -> Float[Tensor, "token d"]:
    """What the LM head gets at the scored positions, prompt after prompt; no logits are computed for the others."""
    seen: list[Tensor] = []

    def keep(_: nn.Module, args: tuple[Any, ...]) -> None:
        seen.append(args[0])

    index = batch.scored_index()
    start_afresh(model)
    with head_at(model, index), ExitStack() as handles:
        with interrupt_deferred():
            head = model.get_output_embeddings()  # type: ignore[operator]
            handles.callback(head.register_forward_pre_hook(keep).remove)
        with torch.no_grad():
            model(**accepted(model, batch.inputs(device_of(model))), use_cache=False)
    return seen[0][torch.as_tensor(batch.mask, device=seen[0].device)]


def head_logits(body: Anatomy, states: Float[Tensor, "batch token d"]) -> Float[Tensor, "batch token vocab"]:
    """The logits that a model makes of what its decoder returns: by its head, with its scale and soft cap."""
    from transformers.modeling_outputs import BaseModelOutput

    class States(BaseModelOutput):
        def __getattr__(self, name: str) -> None:
            """Caches, router logits and the like, which some families ask their decoder for."""

    at = device_of(body.model)
    out = States(last_hidden_state=states.to(at))
    tokens = torch.zeros(states.shape[:2], dtype=torch.long, device=at)
    answer: Callable[..., Any] = lambda *_, **__: out  # noqa: E731
    with plain_calls(body.model), override_forward({body.decoder: answer}):
        return body.model(input_ids=tokens, use_cache=False).logits
