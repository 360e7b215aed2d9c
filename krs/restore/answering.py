"""The answers that a sweep scores, where a model gives them: kept in the sweep's checkpoint while it does."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from krs._typing import Tokenizer
from krs.errors import KrsError
from krs.metrics.measures import Measure
from krs.prompts import Ids, TokenBatch, decode, pieces
from krs.restore.checkpoint import SAVE_EVERY, Asked
from krs.restore.losses import Losses
from krs.restore.result import SweepResult
from krs.wording import counted
from krs.writing import rescued


def begun(
    asked: Asked,
    batch: TokenBatch,
    answers: tuple[Ids, ...],
    measures: Sequence[Measure],
    tokenizer: Tokenizer | None,
    notes: Sequence[str] = (),
) -> SweepResult:
    """A result with room for its numbers, none of which is there.

    Of the first prompts only where the others have no answers yet; these are in `provenance["waiting"]` then.
    """
    n = len(answers)
    ids = asked.prompts[:n]
    made = asked.made | {"tokens_sha256": batch.digest, "notes": list(notes)}
    if n < len(asked.prompts):
        made["waiting"] = {"token_ids": asked.prompts[n:], "prompts": asked.texts[n:]}
        made["notes"].append(f"{counted(len(asked.prompts) - n, 'prompt')} more had no answer yet when it stopped")
    plan = asked.plan.at_places(batch.places)
    return SweepResult(
        plan,
        Losses.empty(plan, batch, measures),
        asked.scoring,
        asked.texts[:n],
        tuple(decode(a, tokenizer) for a in answers) if tokenizer is not None else answers,
        made,
        token_ids=tuple(zip(ids, answers, strict=True)),
        pieces=() if tokenizer is None else pieces(ids, answers, tokenizer),
        reach=batch.reach,
    )


@dataclass
class Answered:
    """The answers so far, saved every half minute.

    Attributes:
        said: token ids of the answers.
        many: how many there will be.
        who: the model that gives them.
        file: the checkpoint, if there is one.
        begin: makes a result of answers.
        fresh: whether some were given that an earlier call had not left.
    """

    said: tuple[Ids, ...]
    many: int
    who: str
    file: Path | None
    begin: Callable[[tuple[Ids, ...]], SweepResult]
    fresh: bool = False
    saved: float = field(default_factory=time.monotonic)
    warned: bool = False

    @property
    def options(self) -> dict[str, Any]:
        """What `greedy` is to say and to do for them."""
        return {"doing": f"{self.who} answers", "side": self.who, "done": self.said, "kept": self.note}

    def note(self, said: tuple[Ids, ...]) -> None:
        """A batch was answered; where saving fails, say so once and go on."""
        self.said, self.fresh = said, True
        if self.file is None or time.monotonic() - self.saved < SAVE_EVERY:
            return
        try:
            self.begin(said).save(self.file, overwrite=True)
        except KrsError as reason:
            if not self.warned:
                warnings.warn(f"the sweep goes on, but its checkpoint is not kept: {reason}", stacklevel=5)
            self.warned = True
        self.saved = time.monotonic()

    def leave(self, stop: BaseException) -> None:
        """On the way out of `stop`, save the answers so far, and say where they are."""
        stop.partial = found = self.begin(self.said)  # type: ignore[attr-defined]
        what = f"what was done, {len(self.said)} of {counted(self.many, f'{self.who} answer')} and no restoration yet,"
        if self.file is None:
            stop.add_note(f"{what} is in the exception's attribute `partial`; checkpoint= would also save it")
            return
        try:
            found.save(self.file, overwrite=True)
            stop.add_note(f"{what} is in {str(self.file)!r}; the same call goes on from there")
        except KrsError as reason:
            stop.add_note(f"{what} could not be saved, and {rescued(found.save, self.file)}: {reason}")


@contextmanager
def keeping_answers(
    found: SweepResult | None, many: int, who: str, file: Path | None, begin: Callable[[tuple[Ids, ...]], SweepResult]
) -> Iterator[Answered]:
    """Whatever interrupts the block, the answers that were noted in it are kept: those of whole batches of prompts.

    What an earlier call has left is in `said` at first. An error in what was asked is no interruption: the same call
    would come to it again.
    """
    kept = Answered(() if found is None else tuple(answer for _, answer in found.token_ids), many, who, file, begin)
    try:
        yield kept
    except KrsError:
        raise
    except BaseException as stop:
        if kept.fresh or (found is not None and "waiting" in found.provenance):  # never over numbers
            kept.leave(stop)
        raise
