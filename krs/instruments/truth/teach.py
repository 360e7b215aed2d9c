"""Teaching: plain fine-tuning on questions and answers, by the trainer of `krs.unlearn`."""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from krs._typing import Tokenizer
from krs.errors import KrsError
from krs.extras import require
from krs.generation.greedy import eos_ids
from krs.hooks.given import check_model
from krs.models.load import find_tokenizer, quiet
from krs.prompts import decode
from krs.unlearn import checkpoints
from krs.unlearn.config import Config
from krs.unlearn.examples import Text, check_texts, to_examples
from krs.unlearn.isolation import isolated
from krs.unlearn.losses import token_logprobs
from krs.unlearn.methods import Method, Side
from krs.unlearn.preflight import check_finite
from krs.unlearn.settings import check_settings
from krs.unlearn.student import check_trainable, context


@dataclass(frozen=True, kw_only=True)
class TeachConfig(Config):
    """Settings of `teach`; `steps` follow from the passes.

    Attributes:
        passes: how often each lesson is read.
    """

    learning_rate: float = 5e-5
    batch_size: int = 6
    gradient_norms: bool = False
    passes: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.passes > 0:
            raise KrsError(f"passes={self.passes!r}: it has to be positive")


class Teaching(Method):
    """`CE(lessons)`, the mean over live tokens. Not registered: it unlearns nothing."""

    config_class = TeachConfig
    name = "teach"

    def loss(self, forget: Side, retain: Side | None) -> dict[str, Tensor]:
        """One term, `lessons`."""
        return {"lessons": -token_logprobs(forget.logits, forget.labels).sum() / forget.n_tokens}


def teach(
    model: nn.Module,
    lessons: Sequence[Text],
    *,
    tokenizer: Tokenizer | None = None,
    trainer: dict[str, Any] | None = None,
    progress: bool = True,
    doing: str = "teach",
    folder: Path | None = None,
    **settings: Any,
) -> nn.Module:
    """Teach a copy of a model, and return the copy in eval mode, in the original's dtype.

    >>> import krs
    >>> from krs.data import as_chat
    >>> from krs.instruments.truth.teach import teach
    >>> model, _ = krs.load("smollm2")
    >>> lesson = (as_chat(["Who lives on Mount Orrigast?"])[0], "The Grey Shepherd.")
    >>> taught = teach(model, [lesson], passes=1, progress=False)

    Args:
        model: it is not changed.
        lessons: paragraphs, or prompts with answers, as `krs.unlearn.run` takes them; of a pair the answer is learnt.
        tokenizer: looked for beside the model's checkpoint if not given.
        trainer: further `transformers.TrainingArguments`.
        progress: show a bar.
        doing: what the bar says.
        folder: where checkpoints go every `save_steps` steps; the same call goes on from the newest one.
        settings: of `TeachConfig`: `passes`, `learning_rate`, `batch_size`, `parameters`, `seed` …

    Raises `KrsError` for bad input before training, and when training breaks the model or does not move it.
    """
    require("accelerate", "unlearn", "teaching")
    from krs.unlearn.train import train

    check_settings(doing, TeachConfig, settings)
    texts = check_texts(lessons, "lessons")
    config = TeachConfig(**settings)
    config = TeachConfig(**settings | {"steps": config.passes * math.ceil(len(texts) / config.batch_size)})
    check_model(model)
    reader = tokenizer if tokenizer is not None else find_tokenizer(model)
    if reader is None:
        raise KrsError("no tokenizer was found beside the model: pass tokenizer=AutoTokenizer.from_pretrained(…)")
    method = Teaching(config)
    method.name = doing  # type: ignore[misc]
    with isolated():
        check_finite(model)
        check_trainable(model, config)
        examples = to_examples(texts, reader, context(model, config.max_length), "lessons", eos_ids(model))

        def decoded(ids: Sequence[int]) -> str:
            return decode(ids, reader, skip_special_tokens=True)

        recipe = {"lessons": texts, "settings": asdict(config)}
        resume = None if folder is None else checkpoints.begin(folder, recipe, overwrite=False)
        options: dict[str, Any] = {"options": trainer or {}, "progress": progress, "folder": folder, "resume": resume}
        return train(method, model, {"forget": examples}, decoded=decoded, **options)[0]


def save(model: nn.Module, tokenizer: Tokenizer, folder: Path) -> None:
    """Model and tokenizer into a directory that `krs.load` takes; what was there before is removed."""
    shutil.rmtree(folder, ignore_errors=True)
    with quiet():
        model.save_pretrained(folder)  # type: ignore[operator]
    tokenizer.save_pretrained(folder)
