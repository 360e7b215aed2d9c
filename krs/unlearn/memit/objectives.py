"""What is wanted of the residual stream at the subject: that a word follows, or that nothing in particular does."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from krs._typing import Tokenizer
from krs.errors import KrsError
from krs.generation.forward import accepted, device_of
from krs.hooks.anatomy import Anatomy
from krs.hooks.interrupts import interrupt_deferred
from krs.hooks.listen import on_value
from krs.prompts import TokenBatch, next_token_batch
from krs.unlearn.memit.forward import BLOCK_OUT, at_positions, scored_logits
from krs.unlearn.memit.places import Place, prompts_batch


@dataclass(frozen=True)
class Rows:
    """Prompts to run, and what is wanted after them.

    Attributes:
        batch: the ids, and the positions whose logits count.
        wanted: at each of these, the token whose likelihood counts; -1 for none.
    """

    batch: TokenBatch
    wanted: Int[Tensor, "row token"]


class Objective(ABC):
    """What is minimised at the subject's token, a number a row."""

    @abstractmethod
    def rows(self, places: Sequence[Place], tokenizer: Tokenizer) -> Rows:
        """What to run, a row a place."""

    @abstractmethod
    def loss(self, body: Anatomy, rows: Rows, layer: int) -> Float[Tensor, " row"]:
        """Of the model as it is now, `layer` being the last edited one."""

    def check(self, body: Anatomy, layer: int) -> None:  # noqa: B027
        """Raise `KrsError` for a model that it cannot be computed for."""


class Likelihood(Objective):
    """Mean negative log-likelihood, in nats a token, of a word after each prompt."""

    def __init__(self, said: str) -> None:
        self.said = said

    def rows(self, places: Sequence[Place], tokenizer: Tokenizer) -> Rows:
        """The prompts with the word behind them; its tokens are scored."""
        answers = tuple(p.continuation(self.said, tokenizer) for p in places)
        batch = next_token_batch(tuple(p.ids for p in places), answers)
        wanted = torch.full((len(batch), batch.n_scored), -1)
        for row, ids in zip(wanted, answers, strict=True):
            row[: len(ids)] = torch.tensor(ids)
        return Rows(batch, wanted)

    def loss(self, body: Anatomy, rows: Rows, layer: int) -> Float[Tensor, " row"]:
        """`-(1/I)·Σ log p(target_i)`."""
        return nll(scored_logits(body, rows.batch), rows.wanted)


class Entropy(Objective):
    """Minus the entropy, in nats, of the vocabulary projection at the prompt's last token, a mean over layers.

    The hidden states of the last edited layer and of all after it are projected, each through the final norm once and
    the head; those of the last layer give the model's real logits.
    """

    def rows(self, places: Sequence[Place], tokenizer: Tokenizer) -> Rows:
        """The prompts alone; the last token is scored."""
        return Rows(prompts_batch(places), torch.full((len(places), 1), -1))

    def loss(self, body: Anatomy, rows: Rows, layer: int) -> Float[Tensor, " row"]:
        """`(1/L)·Σ_l Σ_v p_l(v)·log p_l(v)`."""
        device = device_of(body.model)
        last = rows.batch.scored_index(device)[:, 0]
        with _projected(body, layer, last):
            inputs = accepted(body.model, rows.batch.inputs(device))
            logits = body.model(**inputs, use_cache=False).logits
        return -entropy(logits).mean(-1)

    def check(self, body: Anatomy, layer: int) -> None:
        """Raise `KrsError` for a model without a norm before its head."""
        final_norm(body)


@contextmanager
def _projected(body: Anatomy, layer: int, last: Int[Tensor, " row"]) -> Iterator[None]:
    """Inside, the model's logits are those of the hidden states of `layer` and later ones, at one position a row.

    They take the place of the head's input, so that whatever a family does to its logits afterwards is done to all.
    """
    norm = final_norm(body)
    states: list[Tensor] = []

    def keep(value: Tensor) -> None:
        states.append(at_positions(value, last))

    def project(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        real = at_positions(args[0], last)
        earlier = [norm(s[:, None]).to(real.device) for s in states[:-1]]
        return torch.cat([*earlier, real[:, None]], dim=1), *args[1:]

    with ExitStack() as handles:
        with interrupt_deferred():
            for i in range(layer, body.n_layers):
                handles.callback(on_value([body.layers[i]], BLOCK_OUT, keep).remove)
            head = body.model.get_output_embeddings()  # type: ignore[operator]
            handles.callback(head.register_forward_pre_hook(project).remove)
        yield


def final_norm(body: Anatomy) -> nn.Module:
    """The norm before the head; raises `KrsError` for a model that has none."""
    try:
        return body.model.get_submodule(body.family.final_norm)
    except AttributeError:
        raise KrsError(
            f"this {type(body.model).__name__} has no {body.family.final_norm!r}, the norm before the head through "
            "which hidden states are projected: use memit_empty"
        ) from None


def entropy(logits: Float[Tensor, "... vocab"]) -> Float[Tensor, "..."]:
    """The entropy of `softmax(logits)` in nats, in fp32 and from `log_softmax`."""
    scores = torch.log_softmax(logits.float(), dim=-1)
    return -(scores.exp() * scores).sum(-1)


def nll(logits: Float[Tensor, "row token vocab"], answers: Int[Tensor, "row token"]) -> Float[Tensor, " row"]:
    """Mean negative log-likelihood of each row's answer tokens; -1 stands for none."""
    live = answers >= 0
    scores = torch.log_softmax(logits.float(), dim=-1)
    found = scores.gather(-1, answers.clamp(min=0).to(scores.device)[..., None])[..., 0]
    live = live.to(scores)
    return -(found * live).sum(-1) / live.sum(-1)
