"""Is what was saved the model that was made? Asked before a run says that it has succeeded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from krs._typing import Tokenizer
from krs.errors import KrsError
from krs.generation.forward import accepted, device_of
from krs.models.load import load
from krs.prompts import Ids
from krs.restore.memory import budget

_TEXTS, _TOKENS = 3, 64
_NARROW = (torch.bfloat16, torch.float16)


def probes(forget: Sequence[Any], tokenizer: Tokenizer, limit: int) -> list[Ids]:
    """Token ids of the words of a few things to forget, whatever form they have, cut to what a look at them needs."""
    found = [tuple(tokenizer(text)["input_ids"])[: min(limit, _TOKENS)] for text in words(forget)]
    return [ids for ids in found if ids]


def words(forget: Sequence[Any]) -> list[str]:
    """The words of a few things to forget, whatever form they have."""
    return [" ".join(_words(item)) for item in list(forget)[:_TEXTS]]


def _words(item: Any) -> list[str]:
    if isinstance(item, str):
        return [item]
    if isinstance(item, Mapping):
        parts: Iterable[Any] = item.values()
    elif is_dataclass(item):
        parts = vars(item).values()
    else:
        parts = item if isinstance(item, Sequence) else ()
    return [word for part in parts for word in _words(part)]


@torch.no_grad()
def check_saved(model: nn.Module, folder: Path, texts: Sequence[Ids]) -> dict[str, Any]:
    """Load what `folder` holds as anyone would, and compare weights and logits with `model`.

    A model of which no second copy fits into memory is read from the disk a layer at a time, and only its logits are
    compared.

    Args:
        model: what was saved, in eval mode.
        folder: where.
        texts: token ids to run both on.

    Returns how much was compared and the largest difference of a logit, for the report. Raises `KrsError`, with the
    model as its `partial`, when `krs.load(folder)` gives something else.
    """
    options: dict[str, Any] = {"device": device_of(model)}
    if not _fits_twice(model):
        options = {"offload": "disk"}
    if type(model).__module__.startswith("transformers_modules."):
        options["trust_remote_code"] = True
    try:
        again, _ = load(folder, **options)
    except KrsError as reason:
        raise _not_the_same(model, f"it cannot be loaded: {reason}") from None
    if "offload" not in options and (names := _differing(model, again)):
        raise _not_the_same(model, f"{len(names)} weights differ, such as {names[0]!r}")
    largest, off, size = 0.0, 0.0, 0.0
    for ids in texts:
        ours, theirs = _logits(model, ids), _logits(again, ids)
        largest = max(largest, float((ours - theirs).abs().max()))
        off, size = off + float((ours - theirs).square().sum()), size + float(ours.square().sum())
    narrow = any(p.dtype in _NARROW for m in (model, again) for p in m.parameters())
    if not off <= (0.05 if narrow else 1e-4) ** 2 * size:
        raise _not_the_same(model, f"a logit differs by {largest:.3g}")
    return {"texts": len(texts), "tokens": sum(map(len, texts)), "largest_logit_difference": largest}


def _not_the_same(model: nn.Module, how: str) -> KrsError:
    error = KrsError(
        f"what was saved does not give back the model that was unlearned ({how}): its configuration does not say how "
        "the model was built, such as a setting that was changed afterwards, or code that transformers does not have; "
        "correct `model.config`, and save the model with it"
    )
    error.partial = model
    return error


def _differing(model: nn.Module, again: nn.Module) -> list[str]:
    """Names of weights that are missing, or not bit for bit the same where the dtype is."""
    theirs = dict(again.named_parameters(remove_duplicate=False))
    found = []
    for name, ours in model.named_parameters(remove_duplicate=False):
        other = theirs.get(name)
        same = other is not None and ours.shape == other.shape
        if same and other is not None and ours.dtype == other.dtype:
            same = torch.equal(ours, other.to(ours.device))
        if not same:
            found.append(name)
    return found


def _fits_twice(model: nn.Module) -> bool:
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    return size <= 3 * budget("auto", device_of(model))


def _logits(model: nn.Module, ids: Ids) -> Tensor:
    tokens = torch.tensor([ids], device=device_of(model))
    inputs = accepted(model, {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)})
    return model(**inputs, use_cache=False).logits.cpu().double()
