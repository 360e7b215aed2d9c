"""What two models say to the same questions: the paper's behaviour test (section 4, Fig. 2)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Sized
from pathlib import Path
from typing import Any

import torch
from torch import nn

from krs._typing import Tokenizer
from krs.generation.greedy import eos_ids, pad_ids
from krs.hooks.context import plain_numerics
from krs.metrics.answers_result import Answers
from krs.metrics.asking import Asked, How, ask
from krs.metrics.bleu import REFUSALS, BleuKind, check_kind, check_refusals
from krs.models.given import Model
from krs.models.pair import Vocabulary
from krs.models.tokenizers import as_tokenizer
from krs.prompts import (
    Prompts,
    check_prompts,
    check_template_arguments,
    decode,
    encode,
    is_chat,
    with_template_arguments,
)
from krs.prompts.notes import bare_texts, prompt_notes
from krs.writing import check_writable


@plain_numerics()
def answers(
    vanilla: Model,
    unlearned: Model,
    target: Prompts,
    unrelated: Prompts = (),
    *,
    tokenizer: Tokenizer | str | Path | None = None,
    n_tokens: int = 30,
    bleu: BleuKind = "sacrebleu",
    refusals: Sequence[str] = REFUSALS,
    reuse: Answers | None = None,
    checkpoint: str | Path | None = None,
    vocabulary: Vocabulary = "same",
    progress: bool = True,
    chat_template_kwargs: dict[str, Any] | None = None,
    device: str | torch.device = "auto",
    dtype: torch.dtype | str = "auto",
    device_map: Any = None,
) -> Answers:
    """Ask both models the same questions and compare their greedy answers.

    >>> import krs
    >>> vanilla, _ = krs.load("smollm2")
    >>> unlearned, _ = krs.load("smollm2")       # stands in for one that was unlearned
    >>> found = krs.metrics.answers(vanilla, unlearned, target=["The capital of France is"], n_tokens=3, progress=False)
    >>> round(float(found.table.bleu["target"])), int(found.table.questions["target"])
    (100, 1)

    Args:
        vanilla: as in `krs.sweep`. Both models' answers end where this one's do.
        unlearned: as in `krs.sweep`.
        target: prompts about what was unlearned.
        unrelated: prompts about other things.
        tokenizer: or the name of a model that has it; looked for beside the models' checkpoints if not given.
        n_tokens: at most so many tokens an answer.
        bleu: `"sacrebleu"` or `"paper-code"`, see `krs.metrics.bleu.bleu`.
        refusals: regular expressions that make an answer a refusal.
        reuse: an earlier result of the same vanilla model and prompts, whose vanilla answers are taken over.
        checkpoint: a file for the answers so far, written every half minute, after each model has answered and on
            Ctrl-C; called again with the same models, prompts and length, the call goes on from it, and gives what it
            would have given. It holds the result in the end.
        vocabulary: as in `krs.sweep`.
        progress: show bars.
        chat_template_kwargs: as in `krs.sweep`.
        device: where models given by name go, as in `krs.sweep`; `dtype` and `device_map` likewise.
        dtype: see `device`.
        device_map: see `device`.

    What is most likely not meant is in the result's `notes`, as in `krs.sweep`.

    Raises `KrsError` before anything runs for a pair that does not belong together, and for bad prompts or settings.
    An interrupted call raises what interrupted it with the attribute `partial`, the `Answers` there are (those of whole
    batches of prompts), of which `reuse=` takes the vanilla model's.
    """
    check_kind(bleu)
    file = checkpoint_file(checkpoint)
    asked = {"target": check_prompts(target, "target")}
    if others := some(unrelated):
        asked["unrelated"] = check_prompts(others, "unrelated")
    refusals = check_refusals(refusals)
    every = [prompt for side in asked.values() for prompt in side]
    arguments = check_template_arguments(chat_template_kwargs, any(map(is_chat, every)))

    def put(reader: Tokenizer, model: nn.Module) -> Asked:
        ids = encode(every, with_template_arguments(reader, arguments), pads=pad_ids(model), ends=eos_ids(model))
        return Asked(
            tuple(side for side, prompts in asked.items() for _ in prompts),
            tuple(_shown(prompt, reader) for prompt in every),
            ids,
            tuple(prompt_notes(every, reader, arguments)),
            bare_texts(every, reader),
        )

    how = How(n_tokens, bleu, list(refusals), reuse, file, progress)
    places: dict[str, Any] = {"device": device, "dtype": dtype, "device_map": device_map}
    return ask(
        vanilla,
        unlearned,
        put,
        how,
        reader=as_tokenizer(tokenizer),
        arguments=arguments,
        vocabulary=vocabulary,
        **places,
    )


def checkpoint_file(given: str | Path | None) -> Path | None:
    """Where a call keeps its answers, tried before anything is loaded."""
    file = None if given is None else Path(given)
    if file is not None:
        check_writable(file, "checkpoint")
    return file


def _shown(prompt: Any, tokenizer: Tokenizer) -> str:
    """A prompt as a table should show it: its text, or what the last message says."""
    if isinstance(prompt, str):
        return prompt
    return str(prompt[-1]["content"]) if is_chat(prompt) else decode(prompt, tokenizer)


def some(prompts: Any) -> Any:
    """Prompts that may be none; a generator is read."""
    if isinstance(prompts, Iterator):
        prompts = list(prompts)
    return prompts if not isinstance(prompts, Sized) or prompts else None
