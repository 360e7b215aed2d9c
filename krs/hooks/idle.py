"""Hooks that libraries leave on a model and that change nothing while nobody asks them to.

After one forward with `output_hidden_states=True`, `transformers` keeps a hook on every layer, and a TransformerLens
bridge has some on every block. They are told from a caller's own hooks by the function that made them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from inspect import getclosurevars
from typing import Any

from torch import nn
from torch.nn.modules import module as torch_module

_IDLE = {
    # notes outputs while a forward with output_hidden_states or output_attentions runs
    ("transformers.utils.output_capturing", "install_output_capuring_hook.<locals>.output_capturing_hook"),
    # marks the embeddings as requiring gradients, for gradient checkpointing
    ("transformers.modeling_utils", "PreTrainedModel.enable_input_require_grads.<locals>.make_inputs_require_grads"),
    # notes what a layer's norm gets
    (
        "transformer_lens.model_bridge.generalized_components.block",
        "BlockBridge._maybe_wire_capture_hooks.<locals>._capture_pre_ln1",
    ),
    # passes a value through the hook point of the MLP around it, whose own hooks are found there
    ("transformer_lens.model_bridge.component_setup", "_wire_symbolic_hooks.<locals>.<lambda>"),
    # passes the MLP's input through a hook point, whose own hooks are found there
    (
        "transformer_lens.model_bridge.generalized_components.block",
        "BlockBridge._maybe_wire_capture_hooks.<locals>._capture_mlp_in",
    ),
}
_OF_HOOK_POINTS = ("transformer_lens.hook_points", "HookPoint.add_hook.<locals>.full_hook")


def acting_hooks(model: nn.Module) -> Iterator[str]:
    """Where on a model there are forward hooks that may change what it computes, by module path.

    >>> layer = nn.Linear(2, 2)
    >>> _ = layer.register_forward_hook(lambda module, args, output: 0 * output)
    >>> list(acting_hooks(nn.Sequential(layer)))
    ["'0'"]
    """
    everywhere = (torch_module._global_forward_hooks, torch_module._global_forward_pre_hooks)
    if not all(map(is_idle, (hook for hooks in everywhere for hook in hooks.values()))):
        yield "every module (register_module_forward_hook)"
    for name, module in model.named_modules():
        hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
        if not all(map(is_idle, hooks)):
            yield repr(name) if name else "the model"


def is_idle(hook: Callable[..., Any]) -> bool:
    """Whether a hook is one of those that a library leaves behind and that change no value."""
    name = (getattr(hook, "__module__", ""), getattr(hook, "__qualname__", ""))
    if name == _OF_HOOK_POINTS:  # what TransformerLens puts around every hook that is added to a hook point
        added = getclosurevars(hook).nonlocals.get("hook")
        return added is not None and is_idle(added)
    return name in _IDLE
