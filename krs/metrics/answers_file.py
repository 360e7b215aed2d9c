"""Answers as files, and when those of an earlier call may stand in for new ones."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from krs.errors import KrsError
from krs.metrics.answers_format import BOOLS, FLOATS, FORMAT, MODELS, OF_TEXTS, unfit
from krs.metrics.answers_result import Answers
from krs.models.identity import differing
from krs.models.provenance import versions_that_count
from krs.prompts import Ids
from krs.writing import rescued

_SAVE_EVERY = 30.0
_OTHER_FILE = "give a file that Answers.save or krs answers wrote"


def load_answers(path: str | Path) -> Answers:
    """Read what `Answers.save` wrote; raises `KrsError` for anything else, and for less than all of it."""
    try:
        said = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as reason:
        raise KrsError(f"cannot read {str(path)!r}: {reason.strerror}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as reason:
        raise KrsError(f"{str(path)!r} does not hold answers ({reason}): {_OTHER_FILE}") from None
    edition = said.get("krs_answers") if isinstance(said, dict) else None
    if isinstance(edition, int) and edition != FORMAT:
        raise KrsError(f"{str(path)!r} was written by another version of krs (format {edition})")
    if why := next(unfit(said), None):
        raise KrsError(f"{str(path)!r} does not hold answers ({why}): {_OTHER_FILE}")
    import pandas as pd

    ids = {model: [tuple(row) for row in rows] for model, rows in said["token_ids"].items()}
    floats = (*FLOATS, *(OF_TEXTS if "text" in said["rows"][0] else ()))
    frame = pd.DataFrame(said["rows"]).astype(dict.fromkeys(floats, float))
    whole = len(ids.get("unlearned", ())) == len(frame)
    return Answers(frame.astype(dict.fromkeys(BOOLS, bool if whole else float)), ids, said["provenance"])


def reused(reuse: Answers, ours: dict[str, Any]) -> tuple[Ids, ...]:
    """The vanilla answers of an earlier result; `KrsError` unless they are those of this model to these prompts."""
    said, n_ids = tuple(reuse.token_ids["vanilla"]), ours["n_ids"]
    other = list(what_differs(reuse.provenance, ours, ("vanilla",)))
    there = reuse.provenance.get("n_ids", n_ids)  # earlier versions of krs did not note it
    if there != n_ids or any(max(ids) >= n_ids for ids in said):
        other.append(f"how many ids both models have ({there} there, {n_ids} here)")
    if other:
        raise KrsError(f"reuse= is of other answers. What differs: {'; '.join(other)}. Leave it out")
    return said


def earlier(file: Path | None, ours: dict[str, Any]) -> dict[str, tuple[Ids, ...]]:
    """The answers, by model, that an interrupted call has left in its checkpoint; `KrsError` for another call's."""
    if file is None or not file.exists():
        return {}
    found = load_answers(file)
    if other := list(what_differs(found.provenance, ours, MODELS, same_versions=True)):
        raise KrsError(
            f"checkpoint={str(file)!r} holds other answers. What differs: {'; '.join(other)}. Give another file, or "
            "remove this one"
        )
    return {model: tuple(rows) for model, rows in found.token_ids.items()}


def what_differs(
    theirs: dict[str, Any], ours: dict[str, Any], sides: tuple[str, ...], same_versions: bool = False
) -> Iterator[str]:
    """In what two calls that ask models differ, by their provenance, in words."""
    for side in sides:
        known = theirs.get(side)
        if not isinstance(known, dict) or "identity" not in known:
            yield f"the {side} model, perhaps (an earlier version of krs, which did not look at every byte, wrote this)"
        elif parts := differing(known["identity"], ours[side]["identity"]):
            yield f"the {side} model ({', '.join(parts)})"
    names = {
        "prompts_sha256": "prompts",
        "n_tokens": "n_tokens",
        "ends": "tokens that end an answer",
        "numbers": "krs's way to its numbers",
    }
    yield from (said for name, said in names.items() if theirs.get(name) != ours[name])
    if same_versions:
        there, here = (versions_that_count(made.get("versions") or {}) for made in (theirs, ours))
        for name in there.keys() & here.keys():
            if there[name] != here[name]:
                yield f"{name} ({there[name]} there, {here[name]} here)"


@dataclass
class SavedAnswers:
    """Saves the answers so far every half minute, and whenever a model has answered all.

    Attributes:
        file: the checkpoint, if there is one.
        said: token ids of the answers so far, by model.
        many: how many there will be of each.
        so_far: makes the answers of what has been said.
    """

    file: Path | None
    said: dict[str, tuple[Ids, ...]]
    many: int
    so_far: Callable[[], Answers]
    saved: float = field(default_factory=time.monotonic)

    def note(self, model: str, found: tuple[Ids, ...]) -> None:
        """A batch was answered; where saving fails, say so and go on."""
        self.said[model] = found
        if self.file is None or not (len(found) == self.many or time.monotonic() - self.saved > _SAVE_EVERY):
            return
        try:
            self.so_far().save(self.file)
        except KrsError as reason:
            warnings.warn(f"the questions go on, but their checkpoint is not kept: {reason}", stacklevel=4)
        self.saved = time.monotonic()


def leave(found: Answers, file: Path | None, stop: BaseException) -> None:
    """On the way out of `stop`, save the answers so far, and say where they are."""
    stop.partial = found  # type: ignore[attr-defined]
    many = [f"{len(found.token_ids.get(model, ()))} of {len(found.frame)} {model}" for model in MODELS]
    there = f"the answers so far ({' and '.join(many)})"
    if file is None:
        stop.add_note(f"{there} are in the exception's attribute `partial`; reuse= takes the vanilla ones")
        return
    try:
        found.save(file)
        stop.add_note(f"{there} are in {str(file)!r}; the same call goes on from there")
    except KrsError as reason:
        stop.add_note(f"{there} could not be saved, and {rescued(found.save, file)}: {reason}")


def finish(found: Answers, file: Path | None) -> None:
    """Save the result to its checkpoint; it is on the exception where that fails, and where possible in a file."""
    if file is None:
        return
    try:
        found.save(file)
    except KrsError as reason:
        where = rescued(found.save, file)
        failed = KrsError(
            f"all answers are there, but {reason}. They are in the exception's attribute `partial`, and {where}"
        )
        failed.partial = found
        raise failed from reason
