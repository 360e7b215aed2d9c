"""Answers as files, and when those of an earlier call may stand in for new ones."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from krs.errors import KrsError
from krs.models.identity import differing
from krs.models.provenance import versions_that_count
from krs.prompts import Ids
from krs.writing import rescued, write_text

if TYPE_CHECKING:
    from krs.metrics.answers_result import Answers

_FORMAT = 1
_SAVE_EVERY = 30.0
_FLOATS = ("bleu", "ceiling", "distinct_2", "distinct_2_vanilla", "nll", "nll_vanilla")
OF_TEXTS = ("bleu_text", "bleu_text_vanilla", "nll_text", "nll_text_vanilla")
"""Columns of numbers that a result of text completion has beside the others."""

_BOOLS = ("refusals", "refusals_vanilla")
_MODELS = ("vanilla", "unlearned")
_TEXTS = ("side", "question", "vanilla", "unlearned")
_OTHER_FILE = "give a file that Answers.save or krs answers wrote"


def save(answers: Answers, path: str | Path) -> None:
    """Write answers to one JSON file, in one step."""
    said = {
        "krs_answers": _FORMAT,
        "rows": answers.frame.astype(object).where(answers.frame.notna(), None).to_dict(orient="records"),
        "token_ids": answers.token_ids,
        "provenance": answers.provenance,
    }
    write_text(path, json.dumps(said, ensure_ascii=False, indent=1))


def load_answers(path: str | Path) -> Answers:
    """Read what `Answers.save` wrote; raises `KrsError` for anything else, and for less than all of it."""
    try:
        said = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as reason:
        raise KrsError(f"cannot read {str(path)!r}: {reason.strerror}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as reason:
        raise KrsError(f"{str(path)!r} does not hold answers ({reason}): {_OTHER_FILE}") from None
    edition = said.get("krs_answers") if isinstance(said, dict) else None
    if isinstance(edition, int) and edition != _FORMAT:
        raise KrsError(f"{str(path)!r} was written by another version of krs (format {edition})")
    if unfit := next(_unfit(said), None):
        raise KrsError(f"{str(path)!r} does not hold answers ({unfit}): {_OTHER_FILE}")
    import pandas as pd

    from krs.metrics.answers_result import Answers

    ids = {model: [tuple(row) for row in rows] for model, rows in said["token_ids"].items()}
    floats = (*_FLOATS, *(OF_TEXTS if "text" in said["rows"][0] else ()))
    frame = pd.DataFrame(said["rows"]).astype(dict.fromkeys(floats, float))
    whole = len(ids.get("unlearned", ())) == len(frame)
    return Answers(frame.astype(dict.fromkeys(_BOOLS, bool if whole else float)), ids, said["provenance"])


def _unfit(said: Any) -> Iterator[str]:
    """Why a file's content is not answers, if it is not."""
    if not isinstance(said, dict):
        yield f"it is a {type(said).__name__}"
        return
    kinds = {"krs_answers": int, "rows": list, "token_ids": dict, "provenance": dict}
    for name, kind in kinds.items():
        if not isinstance(said.get(name), kind):
            yield f"{name!r} is {'missing' if name not in said else type(said[name]).__name__}"
            return
    if not said["rows"]:
        yield "there is no row"
    if not isinstance(said["provenance"].get("bleu"), str):
        yield "'bleu' is missing in its provenance"
    if "vanilla" not in said["token_ids"]:
        yield "the token ids of 'vanilla' are missing"
    for model, rows in said["token_ids"].items():
        if not isinstance(rows, list) or not 0 < len(rows) <= len(said["rows"]):
            yield f"the token ids of {model!r} do not belong to its rows"
            return
        if not all(isinstance(row, list) and all(map(_is_id, row)) for row in rows):
            yield f"the token ids of {model!r} are no lists of ids"
    many = [len(said["token_ids"].get(model, ())) for model in _MODELS]
    if many[1] and many[0] < len(said["rows"]):
        yield "the unlearned model answers before the vanilla model has"
    texts: tuple[str, ...] = _TEXTS
    floats: tuple[str, ...] = _FLOATS
    if any(isinstance(row, dict) and "text" in row for row in said["rows"]):
        texts, floats = (*_TEXTS, "text"), (*_FLOATS, *OF_TEXTS)
    for i, row in enumerate(said["rows"]):
        waiting = {m for m, n in zip(_MODELS, many, strict=True) if i >= n}
        yield from _unfit_row(row, f"row {i}", waiting, texts, floats)


def _unfit_row(
    row: Any, where: str, waiting: set[str], texts: tuple[str, ...], floats: tuple[str, ...]
) -> Iterator[str]:
    """The same of one row; the entries of a model that has not answered yet are empty, and what compares the two."""
    if not isinstance(row, dict):
        yield f"{where} is a {type(row).__name__}"
        return
    for names, fits in ((texts, _is_text), (floats, _is_number), (_BOOLS, _is_flag)):
        for name in names:
            value, there = row.get(name), name in row
            if name in waiting:
                right = there and value is None
            else:
                empty = value is None and (names == floats or bool(waiting and names == _BOOLS))
                right = there and (fits(value) or empty)
            if not right:
                yield f"{name!r} of {where} is {'missing' if not there else repr(value)[:40]}"


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool) or (isinstance(value, float) and value in (0.0, 1.0))  # where some are missing


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def reused(reuse: Answers, ours: dict[str, Any]) -> tuple[Ids, ...]:
    """The vanilla answers of an earlier result; `KrsError` unless they are those of this model to these prompts."""
    if other := list(what_differs(reuse.provenance, ours, ("vanilla",))):
        raise KrsError(f"reuse= is of other answers. What differs: {'; '.join(other)}. Leave it out")
    return tuple(reuse.token_ids["vanilla"])


def earlier(file: Path | None, ours: dict[str, Any]) -> dict[str, tuple[Ids, ...]]:
    """The answers, by model, that an interrupted call has left in its checkpoint; `KrsError` for another call's."""
    if file is None or not file.exists():
        return {}
    found = load_answers(file)
    if other := list(what_differs(found.provenance, ours, _MODELS, same_versions=True)):
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
class Keeper:
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
            save(self.so_far(), self.file)
        except KrsError as reason:
            warnings.warn(f"the questions go on, but their checkpoint is not kept: {reason}", stacklevel=4)
        self.saved = time.monotonic()


def leave(found: Answers, file: Path | None, stop: BaseException) -> None:
    """On the way out of `stop`, save the answers so far, and say where they are."""
    stop.partial = found  # type: ignore[attr-defined]
    many = [f"{len(found.token_ids.get(model, ()))} of {len(found.frame)} {model}" for model in _MODELS]
    there = f"the answers so far ({' and '.join(many)})"
    if file is None:
        stop.add_note(f"{there} are in the exception's attribute `partial`; reuse= takes the vanilla ones")
        return
    try:
        save(found, file)
        stop.add_note(f"{there} are in {str(file)!r}; the same call goes on from there")
    except KrsError as reason:
        stop.add_note(f"{there} could not be saved, and {rescued(found.save, file)}: {reason}")


def finish(found: Answers, file: Path | None) -> None:
    """Save the result to its checkpoint; it is on the exception where that fails, and where possible in a file."""
    if file is None:
        return
    try:
        save(found, file)
    except KrsError as reason:
        where = rescued(found.save, file)
        failed = KrsError(
            f"all answers are there, but {reason}. They are in the exception's attribute `partial`, and {where}"
        )
        failed.partial = found
        raise failed from reason
