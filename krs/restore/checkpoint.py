"""What a sweep has done so far: kept in a file, which the same sweep goes on from, and no other."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from krs.errors import KrsError
from krs.models.identity import differing
from krs.models.provenance import now, versions_that_count
from krs.progress import going_on
from krs.prompts import Ids, Scoring
from krs.restore.engines import is_exact
from krs.restore.job import Chunk
from krs.restore.loading import load_result
from krs.restore.plan import Plan
from krs.restore.result import SweepResult
from krs.wording import counted
from krs.writing import rescued

SAVE_EVERY = 30.0
_SHOWN = 30


@dataclass(frozen=True)
class Asked:
    """What is asked of a sweep: two of which this is equal are the same sweep.

    Attributes:
        plan: settings, windows, positions.
        scoring: how.
        prompts: token ids.
        texts: the prompts as a message may show them.
        answers: token ids that were given; `None` where the vanilla model answers.
        made: provenance, with the identities of both models, versions, and what ends an answer.
        dated: how to ask again with an earlier date, if the chat template renders today's; else empty.
    """

    plan: Plan
    scoring: Scoring
    prompts: tuple[Ids, ...]
    texts: tuple[Any, ...]
    answers: tuple[Ids, ...] | None
    made: dict[str, Any]
    dated: str = ""


def earlier(file: Path | None, asked: Asked, progress: bool) -> SweepResult | None:
    """What an interrupted sweep of the same thing has left, if there is a file; with `progress` says how much it is.

    Raises `KrsError` that says what differs for another sweep's, and for one of which it cannot be known.
    """
    if file is None or not file.exists():
        return None
    found = load_result(file)
    if not isinstance(found, SweepResult):
        raise KrsError(
            f"checkpoint={str(file)!r} holds a mean of results, no sweep: give another file, or remove this one"
        )
    theirs = found.provenance
    if not found.token_ids or any("identity" not in theirs.get(side, {}) for side in ("vanilla", "unlearned")):
        raise KrsError(
            f"checkpoint={str(file)!r} is of an earlier version of krs, which did not look at every byte of the "
            "models, so that it may be of another pair: give another file, or remove this one"
        )
    if other := list(_differing(asked, found)):
        raise KrsError(
            f"checkpoint={str(file)!r} holds another sweep. What differs: {'; '.join(other)}. Give another file, or "
            "remove this one"
        )
    many, each = len(asked.prompts), len(found.plan)  # a restoration counts for each prompt, for those come in groups
    left = {
        "scored answer": (len(found.token_ids), many),
        "restoration": (int(found.losses.computed.sum()), many * each),
    }
    going_on(left, file, show=progress, more=f"{each} for each of {counted(many, 'prompt')}")
    return found


def with_answers_of(found: SweepResult | None, file: Path | None, result: SweepResult) -> SweepResult:
    """The new result, with what the earlier one has done; `KrsError` if the scored tokens are others all the same."""
    if found is None or "waiting" in found.provenance:  # then there are answers, and no numbers
        return result
    ours, theirs = result.provenance, found.provenance
    if ours["tokens_sha256"] != theirs["tokens_sha256"]:
        raise KrsError(
            f"checkpoint={str(file)!r} holds another sweep. What differs: the tokens that are scored (another "
            "tokenizer?). Give another file, or remove this one"
        )
    kept = {"time": theirs["time"], "parts": theirs.get("parts", [])}
    return replace(result, losses=found.losses, part=found.part, provenance=ours | kept)


def _differing(asked: Asked, found: SweepResult) -> Iterator[str]:
    ours, theirs = asked.made, found.provenance
    for side in ("vanilla", "unlearned", "reference"):
        if (side in theirs) != (side in ours):
            yield f"the {side} model (given {'there' if side in theirs else 'here'} only)"
        elif side in ours and (parts := differing(theirs[side]["identity"], ours[side]["identity"])):
            yield f"the {side} model ({', '.join(parts)})"
    yield from _differing_prompts(asked, found)
    answers = tuple(answer for _, answer in found.token_ids)
    greedy = theirs.get("answers") != "given"
    if asked.answers is None and not greedy:
        yield "answers (given there, the vanilla model's own here)"
    elif asked.answers is not None and _prompts(found) == asked.prompts and answers != asked.answers:
        yield f"answers (the first is the one to prompt {_first(answers, asked.answers)})"
    pairs = {
        "settings": (found.plan.settings, asked.plan.settings),
        "windows": (found.plan.windows, asked.plan.windows),
        "positions": (found.plan.positions, asked.plan.positions),
        "scoring": (found.scoring, asked.scoring),
        "measures": (theirs.get("measures", list(found.measures)), ours.get("measures", list(found.measures))),
        "family": (theirs.get("family"), ours.get("family")),
        "where a family keeps its modules": (theirs.get("layouts"), ours.get("layouts")),
        "donor_prompts": (theirs.get("donor_prompts"), ours.get("donor_prompts")),
        "direction": (found.direction, ours.get("direction", "restore")),
        "n_tokens": (theirs.get("n_tokens"), ours["n_tokens"]),
        "krs's way to its numbers": (theirs.get("numbers"), ours["numbers"]),
    }
    if asked.answers is None:
        pairs["tokens that end an answer"] = (theirs.get("ends"), ours["ends"])
    yield from (
        f"{what} ({there!r} there, {here!r} here)" if len(f"{there!r}{here!r}") < 80 else what
        for what, (there, here) in pairs.items()
        if there != here
    )
    there, here = (versions_that_count(made.get("versions", {})) for made in (theirs, ours))
    yield from (
        f"{name} ({there[name]} there, {here[name]} here)"
        for name in there
        if name in here and there[name] != here[name]
    )
    engines = {str(part.get("engine")) for part in theirs.get("parts", [])}
    if engines and ours["engine"] != "auto":
        engines.add(str(ours["engine"]))
    if unknown := sorted(name for name in engines if not is_exact(name)):
        yield f"the engine ({', '.join(unknown)} is not an exact one)"


def _differing_prompts(asked: Asked, found: SweepResult) -> Iterator[str]:
    prompts = _prompts(found)
    if prompts == asked.prompts:
        return
    i = _first(prompts, asked.prompts)
    if min(len(prompts), len(asked.prompts)) <= i:
        yield f"prompts ({len(prompts)} there, {len(asked.prompts)} here)"
        return
    texts = (*found.prompts, *found.provenance.get("waiting", {}).get("prompts", ()))
    text = tuple(texts[i]) if isinstance(texts[i], list) else texts[i]
    there, here = _around_the_difference(text, asked.texts[i])
    dated = f"; {asked.dated}" if asked.dated else ""
    yield f"prompts (the first is prompt {i}: {there!r} there, {here!r} here{dated})"


def _prompts(found: SweepResult) -> tuple[Ids, ...]:
    """What was asked, also where the answer had not come yet."""
    waiting = found.provenance.get("waiting", {}).get("token_ids", ())
    return (*(prompt for prompt, _ in found.token_ids), *map(tuple, waiting))


def _first(a: Sequence[Ids], b: Sequence[Ids]) -> int:
    """The index of the first pair that differs."""
    return next(i for i, (x, y) in enumerate(zip_longest(a, b)) if x != y)


def _around_the_difference(a: Any, b: Any) -> tuple[Any, Any]:
    """The places at which two texts, or two rows of ids, part."""
    start = next((i for i, (x, y) in enumerate(zip_longest(a, b)) if x != y), 0)
    part = slice(max(0, start - _SHOWN // 2), start + _SHOWN)
    return a[part], b[part]


def template_date(tokenizer: Any, prompts: Sequence[Any]) -> str:
    """How to ask again with the date of an earlier day; empty where no date is rendered."""
    template = str(getattr(tokenizer, "chat_template", None) or "")
    chat = any(isinstance(message, Mapping) for prompt in prompts for message in prompt[:1])
    if not chat or not any(word in template for word in ("strftime_now", "date_string", "datetime")):
        return ""
    return (
        "the chat template renders today's date, so that a prompt is another one each day: give the prompts as token "
        "ids to go on with those of an earlier day"
    )


@dataclass
class SavingBar:
    """Notes which engine computed what, and saves it every half minute.

    `saving(bar)` is the bar of an engine that begins now, one that also saves.
    """

    result: SweepResult
    file: Path | None
    shown: Any = None
    part: dict[str, Any] = field(default_factory=dict)
    begun: float = 0.0
    saved: float = field(default_factory=time.monotonic)
    warned: bool = False

    def __call__(self, shown: Any) -> SavingBar:
        """A bar for the engine that `provenance["engine"]` names."""
        self.collect()
        made = self.result.provenance
        self.part = {
            "engine": made["engine"],
            "time": now(),
            "versions": made["versions"],
            "devices": [made[side]["device"] for side in ("vanilla", "unlearned")],
        }
        if "engine_note" in made:
            self.part["note"] = made["engine_note"]
        self.begun, self.shown = time.monotonic(), shown
        return self

    def update(self, n: int = 1) -> None:
        """A step is done."""
        self.shown.update(n)
        if self.file is not None and time.monotonic() - self.saved > SAVE_EVERY:
            self.collect()
            try:
                self.result.save(self.file, overwrite=True)
            except KrsError as reason:
                if not self.warned:
                    warnings.warn(f"the sweep goes on, but its checkpoint is not kept: {reason}", stacklevel=2)
                self.warned = True
            self.saved = time.monotonic()

    def made_by(self, chunk: Chunk) -> None:
        """Note that the engine has handed a chunk on to another one."""
        rows = [chunk.prompts.start, chunk.prompts.stop]
        told = {"prompts": rows, "engine": chunk.engine} | ({"note": chunk.note} if chunk.note else {})
        self.part.setdefault("shards", []).append(told)
        if chunk.note:
            self.part["note"] = chunk.note

    @property
    def initial(self) -> int:
        """Steps of earlier calls, which tqdm leaves out of its rate."""
        return int(self.shown.initial)

    @initial.setter
    def initial(self, n: int) -> None:
        self.shown.initial = n

    def set_postfix_str(self, text: str) -> None:
        """As tqdm's."""
        self.shown.set_postfix_str(text)

    def collect(self) -> None:
        """Note that what is done and belongs to no part yet was done by the engine that runs."""
        losses, number = self.result.losses, self.result.part
        assert number is not None
        parts = self.result.provenance["parts"]
        new = (~np.isnan(losses.restored) | ~losses.mask).all(-1) & (number < 0)
        if not new.any():
            return
        if self.part not in parts:
            parts.append(self.part)
        number[new] = mine = parts.index(self.part)
        self.part["restorations"], self.part["prompts"] = (int((number == mine).any(axis).sum()) for axis in (1, 0))
        self.part["seconds"] = round(time.monotonic() - self.begun, 1)


def carried_out(result: SweepResult, file: Path | None, run: Callable[[SavingBar], None]) -> SweepResult:
    """Run an engine on a result that has room for its numbers; whatever happens, what was done is kept."""
    if result.part is None:
        result = replace(result, part=np.full(result.losses.restored.shape[:2], -1, dtype=np.int16))
    result.provenance.setdefault("parts", [])
    saving = SavingBar(result, file)
    there = result.losses.complete and file is not None and file.exists()
    try:
        run(saving)
    except BaseException as stop:
        saving.collect()
        stop.partial = finished = _summed_up(result)  # type: ignore[attr-defined]
        _keep_what_is_done(finished, file, stop)
        raise
    saving.collect()
    result = _summed_up(result)
    if file is not None and not there:
        try:
            result.save(file, overwrite=True)
        except KrsError as reason:
            where = rescued(result.save, file)
            failed = KrsError(
                f"the sweep is complete, but {reason}. It is in the exception's attribute `partial`, and {where}"
            )
            failed.partial = result
            raise failed from reason
        except BaseException as stop:
            stop.partial = result  # type: ignore[attr-defined]
            raise
    return result


def _summed_up(result: SweepResult) -> SweepResult:
    """With what all parts have in common."""
    made = result.provenance
    parts = made["parts"]
    if not parts:
        return result
    engines = dict.fromkeys(part["engine"] for part in parts)
    notes = [part["note"] for part in parts if "note" in part]
    made |= {"engine": " and ".join(engines), "seconds": round(sum(part["seconds"] for part in parts), 1)}
    made |= {"engine_note": notes[-1]} if notes else {}
    return replace(result, provenance=made)


def _keep_what_is_done(result: SweepResult, file: Path | None, stop: BaseException) -> None:
    """Save it if there is anything to save and a place, and say on the exception where it is."""
    assert result.part is not None
    done = int((result.part >= 0).sum())
    if isinstance(stop, KrsError) and not done:
        return
    if file is None:
        stop.add_note("what was done is in the exception's attribute `partial`; checkpoint= would also save it")
        return
    what = (
        f"{done:,} of {counted(result.part.size, 'restoration')},"
        if done
        else "the vanilla answers, and no restoration yet,"
    )
    try:
        result.save(file, overwrite=True)
        stop.add_note(f"what was done, {what} is in {str(file)!r}; the same call goes on from there")
    except KrsError as reason:
        stop.add_note(f"what was done, {what} could not be saved, and {rescued(result.save, file)}: {reason}")
