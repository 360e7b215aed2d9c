"""What instruments are given: two models, what was to be forgotten, and the controls that are at hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from krs._typing import Tokenizer
from krs.errors import KrsError
from krs.generation.greedy import eos_ids
from krs.hooks.unwrap import unwrap
from krs.instruments.facts import Fact
from krs.prompts import TokenBatch, encode, next_token_batch
from krs.prompts.answers import encode_answers


@dataclass(frozen=True, eq=False)
class Wording:
    """How questions are put to the models.

    Attributes:
        tokenizer: of both.
        chat: whether a question is a user's message.
        ends: token ids that end an answer.
        n_tokens: at most so many answer tokens are looked at.
    """

    tokenizer: Tokenizer
    chat: bool
    ends: frozenset[int] = frozenset()
    n_tokens: int = 64

    def prompt(self, question: str) -> Any:
        """A question as `krs.sweep` takes prompts."""
        return [{"role": "user", "content": question}] if self.chat else question


@dataclass(frozen=True, eq=False)
class Asked:
    """Facts as tokens: each question with its answer, and the positions that predict the answer's tokens.

    Attributes:
        facts: in order.
        wording: how they are put.
    """

    facts: tuple[Fact, ...]
    wording: Wording

    def __len__(self) -> int:
        return len(self.facts)

    @property
    def prompts(self) -> list[Any]:
        """The questions, as `krs.sweep` takes them."""
        return [self.wording.prompt(fact.question) for fact in self.facts]

    @property
    def answers(self) -> list[tuple[int, ...]]:
        """Token ids of the right answers, their end included, as `krs.sweep(answers=)` takes them."""
        return list(self.batch.targets)

    @property
    def n_tokens(self) -> int:
        """Of the longest right answer, as `krs.sweep(n_tokens=)` takes it."""
        return max(map(len, self.answers))

    @cached_property
    def batch(self) -> TokenBatch:
        """The right answers, teacher-forced."""
        return self.with_answers([fact.answer for fact in self.facts])

    def with_answers(self, answers: Sequence[str]) -> TokenBatch:
        """The same questions with other answers, teacher-forced."""
        ids = encode(self.prompts, self.wording.tokenizer)
        ends = self.wording.ends
        return next_token_batch(ids, encode_answers(answers, ids, self.wording.tokenizer, self.wording.n_tokens, ends))

    def only(self, which: Sequence[int]) -> Asked:
        """Some of the facts."""
        return replace(self, facts=tuple(self.facts[i] for i in which))

    def texts(self) -> list[tuple[Any, str]]:
        """Pairs of prompt and answer, as `krs.unlearn` takes texts."""
        return [(prompt, fact.answer) for prompt, fact in zip(self.prompts, self.facts, strict=True)]


@dataclass(frozen=True, eq=False)
class Case:
    """A pair of models and what is asked of them.

    Attributes:
        vanilla: the model that knew. Never written to.
        unlearned: the model in question. Never written to.
        target: what was to be forgotten.
        unrelated: facts that were not, for controls.
        retain: a model that never knew the target, where there is one.
        seed: of everything that is drawn.
        kept: a model made for a null, by name, so that several instruments share it.
        found: of each model, what instruments have found and share.
    """

    vanilla: nn.Module
    unlearned: nn.Module
    target: Asked
    unrelated: Asked | None = None
    retain: nn.Module | None = None
    seed: int = 0
    kept: dict[str, nn.Module] = field(default_factory=dict)
    found: WeakKeyDictionary[nn.Module, dict[Any, Any]] = field(default_factory=WeakKeyDictionary)

    @classmethod
    def make(
        cls,
        vanilla: nn.Module,
        unlearned: nn.Module,
        tokenizer: Tokenizer,
        target: Sequence[Fact],
        unrelated: Sequence[Fact] = (),
        retain: nn.Module | None = None,
        *,
        chat: bool | None = None,
        n_tokens: int = 64,
        seed: int = 0,
    ) -> Case:
        """Put questions into words: as a user's messages where the tokenizer has a chat template, unless `chat` says.

        Of PEFT models and bridges the case has the plain model inside.

        Raises `KrsError` if there are no target facts, and for `chat=True` without a template.
        """
        if not target:
            raise KrsError("the target has no facts: give at least one question with its answer")
        v, u = unwrap(vanilla, "vanilla"), unwrap(unlearned, "unlearned")
        never = None if retain is None else unwrap(retain, "retain")
        template = getattr(tokenizer, "chat_template", None) is not None
        if chat and not template:
            raise KrsError("chat=True, and the tokenizer has no chat template: leave chat out")
        wording = Wording(tokenizer, template if chat is None else chat, eos_ids(v), n_tokens)
        others = Asked(tuple(unrelated), wording) if unrelated else None
        return cls(v, u, Asked(tuple(target), wording), others, never, seed)
