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
    """The inputs that the model's forward takes: families that need no `position_ids` do not accept them.

    A forward of somebody's own that hands `**kwargs` on takes what the one behind it takes.
    """
    classes = (vars(c) for c in type(model).__mro__)
    names: set[str] = set()
    for forward in (place["forward"] for place in (vars(model), *classes) if "forward" in place):
        parameters = inspect.signature(forward).parameters.values()
        names |= {p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
        if _of_transformers(forward) or all(p.kind is not p.VAR_KEYWORD for p in parameters):
            break
    return {name: value for name, value in inputs.items() if name in names}


def is_foreign(model: nn.Module) -> bool:
    """Whether a model's forward is somebody's own: what it makes of its head's output, nobody can know beforehand."""
    forward = vars(model).get("forward", type(model).forward)
    if hasattr(model, "_hf_hook"):  # accelerate's, around the model's own
        forward = getattr(model, "_old_forward", forward)
    if type(forward).__module__.startswith("nnsight."):  # idle outside its traces
        forward = getattr(forward, "__wrapped__", forward)
    return not _of_transformers(forward)


def _of_transformers(forward: Callable[..., Any]) -> bool:
    """Whether a forward was written there; what is around it, such as a decorator, counts."""
    return str(getattr(forward, "__globals__", {}).get("__name__", "")).startswith("transformers.")


@contextmanager
def head_at(model: nn.Module, index: Int[Tensor, "batch token"]) -> Iterator[None]:
    """Inside, the LM head gets the final states of the positions `index` only, in that order.

    The logits of the others are never computed: at a vocabulary of 50,000 they cost more than a layer. A forward of
    somebody's own may do with them what it likes (add another model's), so that there they are taken from what it
    returns.
    """

    def before(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        states, *rest = args
        return _at(index, states), *rest

    def after(_: nn.Module, __: tuple[Any, ...], out: Any) -> Any:
        out.logits = _at(index, out.logits)
        return out

    handles = ExitStack()
    try:
        with interrupt_deferred():
            if is_foreign(model):
                handles.callback(model.register_forward_hook(after).remove)
            else:
                head = model.get_output_embeddings()  # type: ignore[operator]
                handles.callback(head.register_forward_pre_hook(before).remove)
        yield
    finally:
        with interrupt_deferred():
            handles.close()


def _at(
    index: Int[Tensor, "batch token"], values: Float[Tensor, "batch pos unit"]
) -> Float[Tensor, "batch token unit"]:
    return values.gather(1, index.to(values.device)[..., None].expand(-1, -1, values.shape[-1]))


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
        seen.append(_at(index, args[0]) if is_foreign(model) else args[0])

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
