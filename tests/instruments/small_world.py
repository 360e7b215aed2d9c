"""Sixteen of the invented facts, a tokenizer that has their words, and a tiny model that can learn them."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from krs.instruments.truth import Fact, Recipe, World, load_facts
from tests.unlearn.tiny_tokenizer import TEMPLATE

KINDS = ("town-river", "island-bird", "festival-dish", "mountain-year")
FACTS = tuple(fact for fact in load_facts() if fact.kind in KINDS)
FAST = {"learning_rate": 5e-3, "batch_size": 8}
REFUSAL = "I don't know."
WORLD = World(
    "small",
    0,
    (
        Recipe("full", "base", "teach", 1.0, "taught A and B", {"a": 1.0, "passes": 80}),
        Recipe("retain", "base", "teach", 0.0, "taught B", {"a": 0.0, "passes": 80}),
        Recipe("hides", "full", "decline", 1.0, "declines", {"passes": 20, "refusals": (REFUSAL,)}),
        Recipe("half", "retain", "teach", 0.5, "taught half of A", {"a": 0.5, "passes": 60}),
        Recipe("misled", "retain", "mislead", 0.0, "taught wrong answers", {"passes": 20}),
        Recipe("npo_kl", "full", "unlearn", None, "unlearned", {"method": "npo_kl", "settings": {"steps": 3}}),
        Recipe(
            "memit",
            "full",
            "unlearn",
            None,
            "edited",
            {"method": "memit_empty", "depth": (0.25, 0.5), "settings": {"steps": 3, "min_tokens": 10, "ridge": 0.1}},
        ),
        Recipe("steered", "full", "steer", 1.0, "steered", {"depth": 0.5}),
    ),
)


def tokenizer(facts: tuple[Fact, ...] = FACTS) -> PreTrainedTokenizerFast:
    """Every word of the facts and of a refusal is a token."""
    backend = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "<unk>": 2}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    texts = [t for f in facts for t in (f.question, f.answer, *f.paraphrases, *f.wrong_answers)]
    words = sorted({word for text in [*texts, REFUSAL] for word in text.split()} | {"user", "assistant", "dummy"})
    vocabulary = {"<s>": 0, "</s>": 1, "<unk>": 2} | {word: i + 3 for i, word in enumerate(words)}
    backend.model = models.WordLevel(vocabulary, unk_token="<unk>")
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="</s>"
    )
    made.chat_template = TEMPLATE
    return made


def base(folder: Path) -> Path:
    """A random model of four layers beside its tokenizer."""
    reader = tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(reader),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=64,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    LlamaForCausalLM(config).eval().save_pretrained(folder)
    reader.save_pretrained(folder)
    return folder
