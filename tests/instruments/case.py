"""A case on tiny models in float64, and what the instruments are compared with, written out by hand."""

from __future__ import annotations

import torch
from torch import nn

from krs.instruments import Case, Fact
from tests.tiny import build, exact_pair, perturbed
from tests.unlearn.tiny_tokenizer import tiny_tokenizer

FACTS = (
    Fact("who wrote the book", "a cat and the dog", ("the book was of who",), ("a dog and the cat",), "dog"),
    Fact("what sat on the moon", "the red sun sat", ("on the moon sat what",), ("the blue sun sat",), "sun"),
    Fact("who ran", "one two three ran on", (), ("two two three ran on", "one one one ran on"), "three"),
    Fact("who was green", "the green cat was", (), ("the green dog was",), "cat"),
)
OTHERS = (Fact("what was blue", "the moon was blue"), Fact("what was green", "an green book"))


def tiny_case(name: str = "llama", retain: bool = True, chat: bool = False) -> Case:
    """Random models: nothing is known here, but every number can be computed by hand."""
    vanilla, unlearned = exact_pair(name)
    never = perturbed(build(name), seed=5, scale=0.2).double() if retain else None
    return Case.make(vanilla, unlearned, tiny_tokenizer(), FACTS, OTHERS, never, chat=chat, n_tokens=8)


def sequence(case: Case, fact: Fact) -> tuple[list[int], int]:
    """Token ids of question, answer and end, and where the answer begins."""
    tokenizer = case.target.wording.tokenizer
    question = tokenizer(fact.question)["input_ids"]
    return question + tokenizer(fact.answer)["input_ids"] + [1], len(question)


def logprobs(model: nn.Module, ids: list[int], start: int) -> torch.Tensor:
    """Of the tokens from `start` on, `[token]`."""
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0]
    return torch.stack([torch.log_softmax(logits[p - 1], -1)[ids[p]] for p in range(start, len(ids))])
