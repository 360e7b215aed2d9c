"""Which engine runs a plan, and what happens when it cannot do it exactly."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Protocol

from krs.errors import KrsError
from krs.generation.batching import neighbours_matter
from krs.hooks.anatomy import Anatomy
from krs.hooks.context import numerics, plain_calls, plain_numerics
from krs.progress import bar
from krs.prompts import TokenBatch
from krs.restore import plain, wavefront
from krs.restore.finite import check_each, check_longest
from krs.restore.losses import Losses
from krs.restore.plan import Plan
from krs.restore.wave.answers import is_offloaded
from krs.restore.wave.lane import NotExactError
from krs.wording import counted


class Executor(Protocol):
    """A module that carries plans out."""

    NAME: str

    def run(
        self,
        plan: Plan,
        vanilla: Anatomy,
        unlearned: Anatomy,
        batch: TokenBatch,
        losses: Losses,
        budget: int,
        shown: Any,
    ) -> None:
        """Fill `losses`."""

    def steps(self, plan: Plan, vanilla: Anatomy, batch: TokenBatch, budget: int) -> int:
        """How many times `run` updates its progress bar."""


_ENGINES: dict[str, tuple[Any, ...]] = {
    "auto": (wavefront, plain),
    "wavefront": (wavefront,),
    "plain": (plain,),
}
CHOICES = tuple(_ENGINES)


def execute(
    engine: str,
    plan: Plan,
    vanilla: Anatomy,
    unlearned: Anatomy,
    batch: TokenBatch,
    losses: Losses,
    budget: int,
    progress: bool,
    keeper: Any,
    made: dict[str, Any],
) -> None:
    """Fill `losses` with the engine asked for; `"auto"` takes the plain one where the fast one would not be exact.

    Args:
        keeper: makes of a progress bar one that also saves.
        made: provenance; gets the engine's name, in `engine_note` why it is not the fast one, in `numerics` what may
            change how it rounds, and in `batching` why prompts were run one at a time, if they were.

    Raises `KrsError` with the reason when only the wavefront engine was asked for and it is not exact here.
    """
    with plain_numerics(), plain_calls(vanilla.model, unlearned.model):
        made["numerics"] = numerics()
        if not is_offloaded(unlearned.model):
            check_longest(unlearned, batch)
        batch = _apart(batch, vanilla, unlearned, made)
        _execute(engine, plan, vanilla, unlearned, batch, losses, budget, progress, keeper, made)


def _apart(batch: TokenBatch, vanilla: Anatomy, unlearned: Anatomy, made: dict[str, Any]) -> TokenBatch:
    """The batch, marked to be run a prompt at a time where a prompt's numbers would depend on its neighbours."""
    for side, body in (("vanilla", vanilla), ("unlearned", unlearned)):
        if why := neighbours_matter(body.model, batch.tokens):
            made["batching"] = f"a prompt at a time: {side}: {why}"
            return replace(batch, alone=True)
    return batch


def _execute(
    engine: str,
    plan: Plan,
    vanilla: Anatomy,
    unlearned: Anatomy,
    batch: TokenBatch,
    losses: Losses,
    budget: int,
    progress: bool,
    keeper: Any,
    made: dict[str, Any],
) -> None:
    for executor in _ENGINES[engine]:
        made["engine"] = executor.NAME
        doing = f"sweep: {counted(len(plan.settings), 'setting')} x {counted(len(plan.windows), 'window')}"
        total = executor.steps(plan, vanilla, batch, budget)
        try:
            with bar(total, doing, show=progress, unit="step") as shown:
                executor.run(plan, vanilla, unlearned, batch, losses, budget, keeper(shown))
            return
        except NotExactError as reason:
            made["engine_note"] = f"not the wavefront engine: {reason}"
            if executor is _ENGINES[engine][-1]:
                check_each(vanilla, unlearned, batch)
                raise KrsError(
                    f"engine='wavefront' is not exact here: {reason}. Use engine='auto', which takes the plain engine"
                ) from None
