"""Activation patching between any two models, of which a sweep is a special case."""

from __future__ import annotations

from typing import Any

from krs.errors import KrsError
from krs.prompts import Prompts
from krs.restore.prepare import Model
from krs.restore.result import SweepResult
from krs.restore.sweep import sweep


def patch_sweep(
    recipient: Model, donor: Model, prompts: Prompts, *, reference: Model | None = None, **options: Any
) -> SweepResult:
    """Put pieces of a donor into a recipient, a window of layers at a time, and measure what that does.

    `krs.sweep(vanilla, unlearned, prompts)` is `patch_sweep(unlearned, vanilla, prompts)`.

    >>> import krs
    >>> clean, _ = krs.load("smollm2")
    >>> corrupted, _ = krs.load("smollm2")
    >>> _ = corrupted.model.layers[29].mlp.up_proj.weight.data.mul_(1.5)
    >>> found = krs.patch_sweep(corrupted, clean, ["Hogwarts is a"], settings="resid", windows=krs.windows.of([[29]]),
    ...                         measures="answer_logprob", n_tokens=3, progress=False)
    >>> round(float(found.recovery("answer_logprob").loc[29, "resid"]), 3)
    1.0

    Args:
        recipient: the model that runs; recovery 0 is this model as it is.
        donor: whose values and weights are put into it; recovery 1 is this one as it is.
        prompts: as in `krs.sweep`.
        reference: the model that results are compared with, and whose greedy answers are scored: the donor (the usual
            denoising, and the default) or the recipient (noising).
        options: of `krs.sweep`, `direction` left out.

    Raises `KrsError` as `krs.sweep` does, and for a reference that is neither of the two.
    """
    if "direction" in options:
        raise KrsError("patch_sweep takes no direction=: the recipient and the donor say it")
    if reference is None or _same(reference, donor):
        return sweep(donor, recipient, prompts, **options)
    if _same(reference, recipient):
        return sweep(recipient, donor, prompts, direction="transplant", **options)
    raise KrsError("reference= is neither the donor nor the recipient: pass one of them, or leave it out (the donor)")


def _same(a: Model, b: Model) -> bool:
    return a is b or (isinstance(a, str) and isinstance(b, str) and a == b)
