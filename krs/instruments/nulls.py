"""Cases in which the answer is known in advance: what an instrument reads there, it reads of nothing.

| null | what it puts in place | what a reading there says |
| --- | --- | --- |
| `same` | the vanilla model as the unlearned one | the reading of a model that knows everything |
| `never_knew` | the retain model as the unlearned one | the reading of a model that knows nothing |
| `unrelated` | the unrelated facts as the target | what the instrument finds where nothing was to be forgotten |
| `random_size` | a random change of the vanilla model, as large as unlearning's | what any small change does |
| `random_effect` | the same, enlarged until the logits move as far | what any damage of this effect does |
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from krs.errors import KrsError
from krs.generation.forward import device_of, logits_at
from krs.hooks.adapters import changeable_copy
from krs.instruments.case import Case
from krs.metrics.logits import logit_mse
from krs.prompts import TokenBatch

_ROUNDS = 12
_ENOUGH = 0.1
"""Relative difference of the logit MSE at which a random change has the same effect."""


def null_cases(names: Iterable[str], case: Case) -> Iterator[tuple[str, Case]]:
    """The cases that stand for these nulls, as far as this one has what they need. A case is made when it is asked for.

    Raises `KrsError` for a null that there is not.
    """
    for name in names:
        if name not in NULLS:
            raise KrsError(f"there is no null {name!r}: there are {', '.join(NULLS)}")
        made = NULLS[name](case)
        if made is not None:
            yield name, made


def random_change(case: Case, scale: float = 1.0) -> nn.Module:
    """The vanilla model with a change of its weights that has the sizes of unlearning's and none of its meaning.

    The elements of each parameter's change are permuted, and multiplied by `scale`.

    Raises `KrsError` for models that do not have the same parameters (an adapter that is not merged).
    """
    changed = changeable_copy(case.vanilla, "a random change of the weights")
    theirs = dict(case.unlearned.named_parameters())
    ours = dict(changed.named_parameters())
    if {n: p.shape for n, p in theirs.items()} != {n: p.shape for n, p in ours.items()}:
        raise KrsError(
            "the models do not have the same parameters, so there is no random change like theirs: merge adapters "
            "first (model.merge_and_unload())"
        )
    draw = torch.Generator().manual_seed(case.seed)
    with torch.no_grad():
        for name, parameter in ours.items():
            change = (theirs[name].detach().cpu() - parameter.cpu()).flatten()
            order = torch.randperm(change.numel(), generator=draw)
            moved = change[order].view_as(parameter) * scale
            parameter.copy_(parameter.cpu() + moved)
    return changed.eval()


def of_equal_effect(case: Case) -> tuple[nn.Module, float]:
    """The random change whose logit MSE on the target is that of unlearning, to a tenth, and its scale.

    Raises `KrsError` where none was found in twelve tries.
    """
    batch = case.target.batch
    wanted = effect(case.vanilla, case.unlearned, batch)
    low, high, scale = 0.0, np.inf, 1.0
    for _ in range(_ROUNDS):
        model = random_change(case, scale)
        found = effect(case.vanilla, model, batch)
        if abs(found - wanted) <= _ENOUGH * wanted:
            return model, scale
        low, high = (scale, high) if found < wanted else (low, scale)
        step = np.sqrt(wanted / found) if found > 0 else 8.0  # the effect of a small change grows as its square
        guess = scale * float(np.clip(step, 1 / 8, 8))
        scale = guess if low < guess < high else (low + min(high, 2 * low + 1)) / 2
    raise KrsError(f"no random change moves the logits as unlearning does (a squared difference of {wanted:.3g})")


@torch.no_grad()
def effect(reference: nn.Module, model: nn.Module, batch: TokenBatch) -> float:
    """Mean logit MSE against a reference over a batch's scored tokens."""
    sums = []
    for row in range(len(batch)):
        part = batch.rows(row, row + 1)
        theirs, ours = (
            logits_at(m, part.inputs(device_of(m)), part.scored_index())[0].cpu() for m in (reference, model)
        )
        sums.append(logit_mse(ours, theirs))
    return float(torch.cat(sums).mean())


def _same(case: Case) -> Case:
    return replace(case, unlearned=case.vanilla)


def _never_knew(case: Case) -> Case | None:
    return None if case.retain is None else replace(case, unlearned=case.retain)


def _unrelated(case: Case) -> Case | None:
    return None if case.unrelated is None else replace(case, target=case.unrelated, unrelated=None)


def _random_size(case: Case) -> Case:
    return replace(case, unlearned=_kept(case, "random change of equal size", lambda: random_change(case)))


def _random_effect(case: Case) -> Case:
    return replace(case, unlearned=_kept(case, "random change of equal effect", lambda: of_equal_effect(case)[0]))


def _kept(case: Case, name: str, make: Callable[[], nn.Module]) -> nn.Module:
    """A model that is made once a case; the one kept before goes, so that there is one at a time."""
    if name not in case.kept:
        case.kept.clear()
        case.kept[name] = make()
    return case.kept[name]


NULLS: dict[str, Callable[[Case], Case | None]] = {
    "same": _same,
    "never_knew": _never_knew,
    "unrelated": _unrelated,
    "random_size": _random_size,
    "random_effect": _random_effect,
}
