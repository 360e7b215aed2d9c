"""The parts of one layer of the unlearned model: which modules carry points, and what can stand in for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from krs.hooks.anatomy import Anatomy
from krs.hooks.points import ActivationPoint, Point
from krs.hooks.weights import LinearMap, linear_map, own_bias
from krs.restore.wave.answers import Answer
from krs.restore.wave.layout import Layout, repeated


@dataclass
class Part:
    """A module that activation points are about, and the block (attention, MLP) whose output is the module's output.

    Attributes:
        module: the role's module.
        path: its path inside the layer.
        block: the module around it, if that returns what this one returns; skipped when this one is constant.
        inputs: what went in, in the base row.
        output: what came out, in the base row.
        returned: all that the block returned, in the base row.
        calls: how often the module was called in the base row.
        written: whether the layer writes into what the target returns (Falcon adds in place).
    """

    module: nn.Module
    path: str
    block: nn.Module | None = None
    inputs: Tensor | None = None
    output: Tensor | None = None
    returned: Any = None
    calls: int = 0
    written: bool = False

    @property
    def inside(self) -> str:
        """The block's path inside the layer."""
        return self.path.rpartition(".")[0]

    @property
    def target(self) -> nn.Module:
        """What answers when the output is known beforehand."""
        return self.module if self.block is None else self.block

    def answer(self, value: Tensor) -> Answer:
        """An answer with a constant output, given for one row, for as many rows as there are."""
        return partial(self._constant, value)

    def _constant(self, value: Tensor, _: Any, *args: Any, **kwargs: Any) -> Any:
        states = next(a for a in (*args, *kwargs.values()) if isinstance(a, Tensor))
        whole = repeated(value, states.shape[0] // value.shape[0])
        whole = whole.clone() if self.written else whole
        if self.block is not None and isinstance(self.returned, tuple):
            return whole, *(None for _ in self.returned[1:])
        return whole


def swapped(ours: nn.Module, theirs: nn.Module) -> Answer:
    """An answer with the linear map of another model's module and the module's own bias.

    The map is found when it is first used, while the other module's layer is in memory.
    """
    found: list[Tensor] = []

    def other(forward: Callable[..., Tensor], value: Tensor, *rest: Any) -> Tensor:
        if not found:
            found.append(linear_map(theirs, "the vanilla model's module").weight)
        return LinearMap(found[0], own_bias(ours, forward, value))(value).to(value.device)

    return other


def blended(value: Tensor, where: Tensor, point: ActivationPoint) -> Answer:
    """An answer in which only the positions `where` (`[sequence, pos]`) hold `value`, one row's."""

    def mix(mine: Tensor) -> Tensor:
        rows = mine.shape[0] // value.shape[0]
        chosen = where.to(mine.device).reshape(*value.shape[:-1], 1)
        return torch.where(repeated(chosen, rows), repeated(value, rows).to(mine), mine)

    def answer(forward: Callable[..., Any], first: Tensor, *rest: Any, **kwargs: Any) -> Any:
        if point.side == "input":
            return forward(mix(first), *rest, **kwargs)
        out = forward(first, *rest, **kwargs)
        return (mix(out[0]), *out[1:]) if isinstance(out, tuple) else mix(out)

    return answer


def scored_only(places: Tensor, layout: Layout) -> Answer:
    """An answer that computes the positions `places` of each row only; the others come out as zeros.

    For modules that treat every position by itself, in the last layer, where no later one looks at the others.
    """
    n_tokens = layout.n_tokens

    def some(forward: Callable[..., Tensor], value: Tensor, *rest: Any, **kwargs: Any) -> Any:
        flat = value.reshape(-1, n_tokens, value.shape[-1])
        part = forward(flat[:, places], *rest, **kwargs)
        out = part.new_zeros(*flat.shape[:2], part.shape[-1])
        out[:, places] = part
        return out.reshape(*value.shape[:-1], part.shape[-1])

    return some


def parts_of(body: Anatomy, layer: int, points: Iterable[Point]) -> dict[str, Part]:
    """The parts that activation points (and the built-in roles) name, by role."""
    roles = dict.fromkeys(p.role for p in points if isinstance(p, ActivationPoint))
    built_in = [r for r in ("attn_out_proj", "mlp_out_proj") if r in body.family.roles]
    found = {}
    for role in dict.fromkeys([*roles, *built_in]):
        (path,) = body.family.paths(role)
        found[role] = Part(body.layers[layer].get_submodule(path), path)
    return found


def watched(body: Anatomy, layer: int, parts: Iterable[Part]) -> dict[nn.Module, Answer]:
    """Answers that change nothing and note in each part what passes."""
    answers: dict[nn.Module, Answer] = {}
    for part in parts:
        answers[part.module] = _noting(part)
        if part.inside:
            around = body.layers[layer].get_submodule(part.inside)
            if around not in answers:
                answers[around] = _noting_block(part, around)
    return answers


def _noting(part: Part) -> Answer:
    def note(forward: Callable[..., Any], value: Tensor, *rest: Any, **kwargs: Any) -> Any:
        out = forward(value, *rest, **kwargs)
        part.inputs, part.output = value.clone(), (out[0] if isinstance(out, tuple) else out).clone()
        part.calls += 1
        return out

    return note


def _noting_block(part: Part, around: nn.Module) -> Answer:
    def note(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        out = forward(*args, **kwargs)
        first = out[0] if isinstance(out, tuple) else out
        if part.output is not None and first.shape == part.output.shape and torch.equal(first, part.output):
            part.block, part.returned = around, out
        return out

    return note
