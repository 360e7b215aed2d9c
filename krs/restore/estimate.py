"""What a sweep would do, what it needs, and about how long it would take: said without loading a weight."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from krs._typing import Tokenizer
from krs.errors import KrsError
from krs.hooks.anatomy import Anatomy, anatomy
from krs.models.given import check_fit, load_options, memory_needed
from krs.models.hub import source
from krs.models.memory import free_memory
from krs.models.places import locate
from krs.models.shapes import skeleton
from krs.models.tokenizers import as_tokenizer, tokenizer_beside
from krs.prompts import (
    Prompt,
    check_prompts,
    check_subjects,
    check_template_arguments,
    encode,
    encode_answers,
    is_chat,
    needs_tokenizer,
    with_template_arguments,
)
from krs.restore.plan import Plan, Settings
from krs.restore.wave.schedule import schedule
from krs.restore.windows import Shape

_BATCH = 16
_PROBE_TOKENS = 1024
_PROBE_SECONDS = 0.2


@dataclass(frozen=True, repr=False)
class Estimate:
    """What `estimate` found.

    Attributes:
        plan: what would be restored.
        prompts: how many there are.
        tokens: of prompts and answers, at most.
        weights: bytes of both models' weights; `None` where the checkpoints do not say.
        free: bytes that are free where they would go.
        place: where that is.
        seconds: for answers and sweep, without loading: an estimate from matrix products measured here.
        problem: why the models do not fit, and what would; `None` if they do.
    """

    plan: Plan
    prompts: int
    tokens: int
    weights: int | None
    free: int
    place: str
    seconds: float
    problem: str | None

    def __repr__(self) -> str:
        weights = "of unknown size" if self.weights is None else f"{self.weights / 1e9:.3g} GB"
        return (
            f"{self.plan!r}\n"
            f"Prompts: {self.prompts}, with answers {self.tokens} tokens at most\n"
            f"Memory: weights {weights}, {self.free / 1e9:.3g} GB free on {self.place}\n"
            f"Time: about {_spoken(self.seconds)} (an estimate from matrix products timed here just now; the wavefront "
            "engine, without loading)"
        )


def estimate(
    vanilla: str | Path,
    unlearned: str | Path,
    prompts: Sequence[Prompt],
    *,
    tokenizer: Tokenizer | str | Path | None = None,
    settings: Settings = None,
    windows: int | Shape = 5,
    n_tokens: int = 30,
    positions: Any = None,
    subjects: Iterable[str] | None = None,
    answers: Sequence[Any] | None = None,
    device: str | torch.device = "auto",
    dtype: torch.dtype | str = "auto",
    device_map: Any = None,
    offload: str | None = None,
    chat_template_kwargs: dict[str, Any] | None = None,
) -> Estimate:
    """What `krs.sweep` with these arguments would do; models are given by name, and only their headers are read.

    >>> estimate("smollm2", "smollm2", ["Hogwarts is a"], device="cpu").tokens
    36

    Raises `KrsError` for the same bad input as `krs.sweep`, but for models that do not fit: that is in `problem`.
    """
    asked = check_prompts(prompts)
    positions = positions if check_subjects(subjects, positions, asked) is None else None
    options = load_options(device, dtype, device_map, offload)
    located = {"vanilla": locate(vanilla), "unlearned": locate(unlearned)}
    place = options.get("device") or torch.device("cuda" if device_map and torch.cuda.is_available() else "cpu")
    problem = None
    try:
        if device_map is None and offload is None:
            check_fit(located, options["dtype"], place)
    except KrsError as reason:
        problem = str(reason)
    body = anatomy(skeleton(*located["unlearned"]))
    plan = Plan.make(settings, windows, n_layers=body.n_layers, positions=positions, n_heads=body.n_heads)
    body.require(plan.points, plan.layers)
    reader = as_tokenizer(tokenizer)
    arguments = check_template_arguments(chat_template_kwargs, any(map(is_chat, asked)))
    if reader is None and needs_tokenizer(asked):
        beside = (tokenizer_beside(where, source(local)) for where, local in located.values())
        reader = next((found for found in beside if found is not None), None)
    ids = encode(asked, None if reader is None else with_template_arguments(reader, arguments))
    given = None if answers is None else encode_answers(answers, ids, reader, n_tokens)
    longest = [n_tokens] * len(ids) if given is None else [len(a) for a in given]
    tokens = sum(map(len, ids)) + sum(longest)
    plan = plan.at_places(range(max(map(len, ids)) + max(longest) - 1))
    weights = memory_needed(located, options["dtype"])
    working = _working_dtype(options["dtype"], body)
    seconds = _seconds(plan, body, tokens, 0 if given is not None else len(ids), n_tokens, place, working)
    return Estimate(plan, len(ids), tokens, weights, free_memory(place), str(place), seconds, problem)


def _working_dtype(asked: torch.dtype | str, body: Anatomy) -> torch.dtype:
    if isinstance(asked, torch.dtype):
        return asked
    said = getattr(body.model.config, "dtype", None)
    return said if isinstance(said, torch.dtype) else torch.float32


def _seconds(
    plan: Plan, body: Anatomy, tokens: int, to_answer: int, n_tokens: int, place: torch.device, dtype: torch.dtype
) -> float:
    """Rows of all layers for all tokens; and the answers, a forward of up to 16 prompts a token."""
    weights = sum(p.numel() for p in body.layers.parameters()) // body.n_layers
    runs = schedule(plan).layer_runs + plan.n_layers
    head: nn.Module = body.model.get_output_embeddings()  # type: ignore[operator]
    everything = weights * body.n_layers + head.weight.numel()  # type: ignore[operator]
    wide = _seconds_a_product(body, _PROBE_TOKENS, place, dtype)
    narrow = _seconds_a_product(body, _BATCH, place, dtype)
    sweep = wide / _PROBE_TOKENS * tokens * weights * runs
    return sweep + narrow * everything * n_tokens * math.ceil(to_answer / _BATCH)


def _seconds_a_product(body: Anatomy, rows: int, place: torch.device, dtype: torch.dtype) -> float:
    """Seconds that so many rows take a weight, in a matrix as wide as the model."""
    width = int(body.model.get_input_embeddings().weight.shape[1])  # type: ignore[operator]
    left = torch.zeros(rows, width, device=place, dtype=dtype)
    right = torch.zeros(width, 4 * width, device=place, dtype=dtype)
    (left @ right)[0, 0].item()
    began, times = time.perf_counter(), 0
    while time.perf_counter() - began < _PROBE_SECONDS:
        (left @ right)[0, 0].item()
        times += 1
    return (time.perf_counter() - began) / times / right.numel()


def _spoken(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
