"""What the tests of MEMIT edit: a tiny corpus, three requests, settings for four layers."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from krs.unlearn.methods import make
from tests.unlearn.tiny_tokenizer import tiny_tokenizer

CORPUS = [
    "the cat sat on the moon",
    "a dog ran in the sun and the cat sat",
    "who wrote the red book",
    "three blue books ran on the green moon",
    "what is the sun",
    "an who was one two three",
]
CHAT = [{"role": "user", "content": "who wrote the red book"}]
REQUESTS = [("cat", "who is the cat of", "dog"), ("red book", CHAT, "the sun"), ("moon", "the {} is in", None)]
LAYERS = (1, 2)
POST_NORM = ("olmo2", "olmo3", "gemma2", "gemma3", "glm4")
FAST: dict[str, Any] = {
    "layers": LAYERS,
    "steps": 3,
    "min_tokens": 10,
    "ridge": 0.1,
    "covariance_weight": 1e-4,
    "cache": False,
}


def edited(
    vanilla: nn.Module, name: str = "memit_empty", forget: Any = REQUESTS, corpus: Any = CORPUS, **settings: Any
) -> tuple[nn.Module, list[dict[str, Any]]]:
    """A copy of the model after the edit, and the log."""
    given = FAST | ({"target": "blue"} if name == "memit_empty" else {}) | settings
    student = copy.deepcopy(vanilla)
    log = make(name, given).edit(student, tiny_tokenizer(), forget, corpus, False)
    return student, log
