"""The straight line between two models' weights, walked by a copy: neither model is written to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from krs.errors import KrsError
from krs.generation.forward import accepted, device_of, head_at
from krs.hooks.adapters import merged
from krs.hooks.anatomy import Anatomy
from krs.hooks.context import plain_calls
from krs.hooks.idle import acting_hooks
from krs.hooks.linear import asked_map, is_packed, is_transposed
from krs.hooks.offload import is_offloaded
from krs.hooks.rope import start_afresh
from krs.hooks.unwrap import plain_modules
from krs.metrics.paired_weights import paired_weights
from krs.models.pair import shared_rows
from krs.prompts import TokenBatch

_NARROW = (torch.bfloat16, torch.float16)


@dataclass(frozen=True, eq=False)
class Weight:
    """One parameter of the copy and where its line begins and ends.

    Attributes:
        name: as both models have it, without what adapters and bridges add.
        held: the copy's own, in fp32 or wider; somewhere on the line.
        start: the unlearned model's.
        end: the vanilla model's.
        rows: how many of the first rows both models have, where one of them has more; `None` where none has.
        transposed: whether it is kept as `[in, out]` (GPT-2's Conv1D).
    """

    name: str
    held: nn.Parameter
    start: Tensor
    end: Tensor
    rows: int | None
    transposed: bool

    def move(self, t: float) -> None:
        """Put the copy's parameter at `start + t (end - start)`; rows that only one model has stay the start's."""
        self.held.copy_(self.start)
        mine, end = self._shared(self.held), self._shared(self.end)
        if t == 1:  # a NaN at the other end stays there
            mine.copy_(end)
        elif t != 0:
            mine.lerp_(end.to(mine), t)

    def change(self) -> Tensor:
        """`end - start`, in the copy's dtype and on its device."""
        found = torch.zeros_like(self.held)
        self._shared(found).copy_(self._shared(self.end)).sub_(self._shared(self.start).to(found))
        return found

    def _shared(self, values: Tensor) -> Tensor:
        return values.detach() if self.rows is None else values.detach()[: self.rows]


@dataclass(frozen=True, eq=False)
class WeightPath:
    """A copy of the unlearned model whose weights can be put anywhere between its own (0) and the vanilla ones (1).

    Attributes:
        model: the copy.
        weights: its parameters; what is tied in both models once.
        n_rows: how many vocabulary rows both models have.
    """

    model: nn.Module
    weights: list[Weight]
    n_rows: int

    def move(self, t: float) -> None:
        """Put every weight at `t`."""
        for weight in self.weights:
            weight.move(t)

    def logits(self, prompt: TokenBatch) -> Float[Tensor, "token vocab"]:
        """The copy's logits at the scored positions of one prompt, its graph kept where gradients are on."""
        inputs = prompt.inputs(device_of(self.model))
        with plain_calls(self.model), head_at(self.model, prompt.scored_index()):
            start_afresh(self.model)
            return self.model(**accepted(self.model, inputs), use_cache=False).logits[0, :, : self.n_rows]

    @contextmanager
    def gradients(self, take: Callable[[int, Tensor], None]) -> Iterator[None]:
        """Inside, a backward pass hands each weight's gradient to `take(which, gradient)` and keeps none.

        So there is one gradient in memory at a time.
        """
        with ExitStack() as stack:
            for i, weight in enumerate(self.weights):

                def handed(held: Tensor, i: int = i) -> None:
                    assert held.grad is not None
                    with torch.no_grad():
                        take(i, held.grad)
                    held.grad = None

                if weight.held.requires_grad:
                    stack.callback(weight.held.register_post_accumulate_grad_hook(handed).remove)
            yield


def weight_path(v: Anatomy, u: Anatomy) -> WeightPath:
    """The line from the unlearned model's weights to the vanilla ones, at its beginning.

    Adapters count as merging gives them, packed numbers as what they are unpacked to. bf16 and fp16 weights are
    walked in fp32. What is the same in both models needs no gradient.

    Raises `KrsError` for weights that are not in memory, that only one model has, or that are no fixed linear map.
    """
    for side, body in (("vanilla", v), ("unlearned", u)):
        if is_offloaded(body.model) or any(p.device.type == "meta" for p in body.model.parameters()):
            raise KrsError(
                f"{side} is offloaded, and gradients need all weights in memory: load it without offload, in bfloat16 "
                "or on more memory"
            )
    model = merged(u.model)
    _unpack(model)
    copied = dict(plain_modules(model))
    made: dict[str, Weight] = {}
    for pair in paired_weights(v.model, u.model):
        if pair.tied_to not in made:
            transposed = is_transposed(copied[pair.module])
            made[pair.full] = _weight(pair.full, pair.vanilla, pair.unlearned, transposed)
        copied[pair.module].register_parameter(pair.name, made[pair.tied_to].held)
    for module in model.modules():
        for name, held in module._buffers.items():
            if held is not None and held.dtype in _NARROW:
                module._buffers[name] = held.float()
    return WeightPath(model, list(made.values()), shared_rows(v.model, u.model))


def outside_the_weights(v: Anatomy, u: Anatomy) -> str:
    """What else two models may differ in, for a message."""
    theirs = dict(v.model.named_buffers())
    for name, ours in u.model.named_buffers():
        other = theirs.get(name)
        if other is not None and (other.shape != ours.shape or not torch.equal(other.to(ours), ours)):
            return f"the buffer {name!r} differs"
    for side, body in (("vanilla", v), ("unlearned", u)):
        if hooked := next(iter(acting_hooks(body.model)), None):
            return f"{side} has a hook at {hooked}"
    return "something in their configuration or code may differ"


def _weight(name: str, end: Tensor, start: Tensor, transposed: bool) -> Weight:
    if not start.is_floating_point():
        raise KrsError(f"{name!r} holds {start.dtype} numbers, no weights: load both models unquantised")
    wide = torch.promote_types(start.dtype, torch.float32)
    rows = min(len(start), len(end)) if start.dim() and len(start) != len(end) else None
    same = rows is None and torch.equal(end.detach().to(start.device), start.detach())
    held = nn.Parameter(start.detach().to(wide, copy=True), requires_grad=not same)
    return Weight(name, held, start.detach(), end.detach(), rows, transposed)


def _unpack(model: nn.Module) -> None:
    """Put an ordinary projection in the place of each packed one."""
    modules = dict(plain_modules(model))
    for path, module in modules.items():
        if not is_packed(module):
            continue
        found = asked_map(module, path)
        into, out = found.weight.shape
        linear = nn.Linear(into, out, bias=found.bias is not None, device="meta").eval()
        linear.weight = nn.Parameter(found.weight.T, requires_grad=False)
        if found.bias is not None:
            linear.bias = nn.Parameter(found.bias, requires_grad=False)
        parent, _, name = path.rpartition(".")
        setattr(modules[parent], name, linear)
