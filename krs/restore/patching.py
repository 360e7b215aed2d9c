"""Activation patching between any two models, of which a sweep is a special case."""

from __future__ import annotations

from typing import Any

from krs.errors import KrsError
from krs.prompts import Prompts
from krs.restore.prepare import Model
from krs.restore.result import SweepResult
from krs.restore.sweep import sweep


def patch_sweep(
    recipient: Model,
    donor: Model,
    prompts: Prompts,
    *,
    reference: Model | None = None,
    donor_prompts: Prompts | None = None,
    **options: Any,
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
        reference: the model that results are compared with, and whose greedy answers to `prompts` are scored: the donor
            (the usual denoising, and the default), the recipient (noising), or a third model with the same vocabulary.
        donor_prompts: what the donor reads while its activations are taken, one for each prompt: interchange
            interventions, and shams that show what any donor's activations would do. Behind them stand the same
            answers. Prompts of different lengths are aligned at their ends; `positions` count in the recipient's. What
            recovery 0 and 1 are, and the reference, are taken on `prompts`, so that numbers can be compared with those
            of the donor's own prompts. Run by the plain engine.
        options: of `krs.sweep`, `direction` left out.

    Only where the reference is the donor, and both read the same, is there a Knowledge Recovery Score;
    `result.recovery(…)` and `result.table(…)` are there for all. Raises `KrsError` as `krs.sweep` does.
    """
    if "direction" in options:
        raise KrsError("patch_sweep takes no direction=: the recipient and the donor say it")
    options["donor_prompts"] = donor_prompts
    if reference is None or _same(reference, donor):
        return sweep(donor, recipient, prompts, **options)
    if _same(reference, recipient):
        return sweep(recipient, donor, prompts, direction="transplant", **options)
    return sweep(donor, recipient, prompts, reference=reference, **options)


def _same(a: Model, b: Model) -> bool:
    return a is b or (isinstance(a, str) and isinstance(b, str) and a == b)
