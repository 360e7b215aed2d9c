"""One question to three models: vanilla, unlearned, and unlearned with pieces of the vanilla one in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from krs._typing import Tokenizer
from krs.errors import KrsError
from krs.generation.greedy import generate
from krs.hooks.library import ATTN_OUT, MLP_COEF
from krs.hooks.points import Placement
from krs.models.given import Model, load_given
from krs.models.pair import Vocabulary, check_pair
from krs.models.tokenizers import as_tokenizer, find_tokenizer
from krs.prompts import Prompt

SPEAKERS = ("vanilla", "unlearned", "restored")
_LAST = 3


@dataclass(frozen=True, repr=False)
class Spoken:
    """What three models say to one question.

    Attributes:
        vanilla: the original model's answer.
        unlearned: the unlearned model's.
        restored: that of the unlearned model with `restore` put back.
        restore: what was put back where.
    """

    vanilla: str
    unlearned: str
    restored: str
    restore: tuple[Placement, ...]

    def __repr__(self) -> str:
        return "\n".join(f"{who}: {getattr(self, who).strip()}" for who in SPEAKERS)


def speak(
    vanilla: Model,
    unlearned: Model,
    question: Prompt,
    *,
    restore: Placement | Sequence[Placement] | None = None,
    n_tokens: int = 60,
    tokenizer: Tokenizer | str | Path | None = None,
    hear: Callable[[str, str], None] | None = None,
    vocabulary: Vocabulary = "same",
    chat_template_kwargs: dict[str, Any] | None = None,
    device: str | torch.device = "auto",
    dtype: torch.dtype | str = "auto",
    device_map: Any = None,
) -> Spoken:
    """Ask the vanilla, the unlearned and the restored model the same.

    >>> import krs
    >>> vanilla, tokenizer = krs.load("smollm2")
    >>> unlearned, _ = krs.load("smollm2")       # stands in for one that was unlearned: its last layer is disturbed
    >>> _ = unlearned.model.layers[29].mlp.up_proj.weight.data.mul_(1.5)
    >>> print(krs.speak(vanilla, unlearned, "The capital of France is", n_tokens=1).restored)
     Paris

    Args:
        vanilla: as in `krs.sweep`.
        unlearned: as in `krs.sweep`.
        question: a text, or a list of messages for the chat template.
        restore: what to put back; MLP coefficients and attention outputs of the last three layers if not given.
        n_tokens: at most so many tokens an answer.
        tokenizer: looked for beside the models if not given.
        hear: is called with who speaks (`"vanilla"`, `"unlearned"`, `"restored"`) and the next piece of text, as it
            comes; one answer after the other.
        vocabulary: as in `krs.sweep`.
        chat_template_kwargs: as in `krs.sweep`.
        device: where models given by name go, as in `krs.sweep`; `dtype` and `device_map` likewise.
        dtype: see `device`.
        device_map: see `device`.

    Raises `KrsError` as `krs.generate` does, and where no tokenizer is found.
    """
    given = {"vanilla": vanilla, "unlearned": unlearned}
    reader = as_tokenizer(tokenizer)
    loaded = load_given(given, device=device, dtype=dtype, device_map=device_map)
    models = [model for model, _ in loaded]
    reader = reader or next((beside for _, beside in loaded if beside is not None), None)
    reader = reader or next((t for m in models if (t := find_tokenizer(m)) is not None), None)
    if reader is None:
        raise KrsError("no tokenizer was found beside the models, and answers are texts: pass tokenizer=")
    if restore is None:
        n_layers = check_pair(models[0], models[1], vocabulary)[1].n_layers
        restore = (MLP_COEF + ATTN_OUT).at(*range(max(0, n_layers - _LAST), n_layers))
    placements = (restore,) if isinstance(restore, Placement) else tuple(restore)
    texts = []
    for who, recipient, put in zip(SPEAKERS, (None, models[1], models[1]), ((), (), placements), strict=True):

        def tell(_: int, piece: str, who: str = who) -> None:
            if hear is not None:
                hear(who, piece)

        said = generate(
            models[0],
            recipient,
            [question],
            restore=put,
            n_tokens=n_tokens,
            tokenizer=reader,
            vocabulary=vocabulary,
            chat_template_kwargs=chat_template_kwargs,
            progress=False,
            hear=tell,
        )
        texts.append(str(said[0]))
    return Spoken(texts[0], texts[1], texts[2], placements)
