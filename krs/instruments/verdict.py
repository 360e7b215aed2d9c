"""From readings to a verdict, by thresholds that come from models whose truth is known.

`thresholds.json` is written by `krs calibrate`. For each instrument that told models that know from models that never
knew it says up to where the ones read and from where on the others did; what lies between is no vote.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, Literal

import numpy as np

from krs.errors import KrsError
from krs.instruments.reading import Reading, interval, mean

Word = Literal["knows", "partly", "does not know", "cannot tell"]
Says = Literal["knows", "never", "between", "beyond", "unsure"]
RULES = 3
"""Raise it when the same readings come to another verdict."""
_ENOUGH = 2
"""So many kinds of instruments have to agree."""
_BEYOND = 0.5
"""How far behind all models that never knew a reading is that no model can come to by not knowing: so many times the
distance from the furthest of them to those that know."""
_TRAINED = frozenset({"likelihood", "saying"})
"""They look at what unlearning trains: a model that is kept from saying what it knows reads low in all of them."""


@dataclass(frozen=True)
class Threshold:
    """Where one instrument tells.

    Attributes:
        knows: readings from here on, in the direction of knowing, are those of models that know.
        never: readings up to here are those of models that never knew.
        auc: of models that know against those that never knew, matched in what they say.
        kind: instruments of one kind look at one thing; they count as one vote.
        same: what the vanilla model itself read in the calibration; NaN where it does not say.
        furthest: the reading furthest from knowing of a model that never knew; NaN where it does not say.
    """

    knows: float
    never: float
    auc: float
    kind: str = ""
    same: float = float("nan")
    furthest: float = float("nan")

    @property
    def sign(self) -> float:
        """1 where more is more knowledge, else -1."""
        return 1.0 if self.knows >= self.never else -1.0

    def vote(self, values: np.ndarray, same: np.ndarray | None = None) -> Says:
        """What the mean of these values says, and what it adds to what the vanilla model reads of the same facts.

        For a vote its interval has to end short of the other side. Where the vanilla model reads otherwise than the one
        in the calibration did, by more than half the distance between both thresholds (its own long answers are less
        likely to it than facts that it was taught), the values count as they are and moved by that difference, and
        both have to say the same.
        """
        said = self._said(values)
        other = 0.0 if same is None else mean(same) - self.same
        if np.isnan(other) or abs(other) <= abs(self.knows - self.never) / 2:
            return said
        moved = self._said(values - other)
        return said if said == moved else "beyond" if "beyond" in (said, moved) else "unsure"

    def _said(self, values: np.ndarray) -> Says:
        middle, (low, high) = mean(values), interval(values)
        if np.isnan([middle, low, high]).any():
            return "unsure"
        s = self.sign
        far, near = (low, high) if s > 0 else (-high, -low)
        middle, knows, never = s * middle, s * self.knows, s * self.never
        if middle >= knows and far > never:
            return "knows"
        if middle < s * self.furthest - _BEYOND * (knows - s * self.furthest):
            return "beyond"
        if middle <= never and near < knows:
            return "never"
        return "between" if far > never and near < knows else "unsure"

    def share(self, values: np.ndarray) -> float:
        """The share of facts that read nearer to knowing."""
        kept = values[~np.isnan(values)]
        halfway = (self.knows + self.never) / 2
        return float((self.sign * (kept - halfway) > 0).mean()) if len(kept) else float("nan")


@dataclass(frozen=True)
class Vote:
    """What one instrument says.

    Attributes:
        instrument: its name.
        says: `"knows"`, `"never"`, `"between"` (the interval lies between both), `"beyond"` (further from knowing than
            models that never knew), or `"unsure"`.
        why: what keeps it from counting; empty where it counts.
        share: of facts that read nearer to knowing.
    """

    instrument: str
    says: str
    why: str = ""
    share: float = float("nan")


@dataclass(frozen=True, repr=False)
class Verdict:
    """The answer in a word, and why.

    Attributes:
        word: `"knows"`, `"partly"`, `"does not know"` or `"cannot tell"`.
        why: a sentence.
        votes: of every instrument that there are thresholds for.
    """

    word: Word
    why: str
    votes: tuple[Vote, ...] = ()

    def __repr__(self) -> str:
        return f"{self.word}: {self.why}" if self.word != "cannot tell" else f"cannot tell, because {self.why}"


@cache
def thresholds() -> dict[str, Threshold]:
    """Those that came out of the calibration that is in this version; none before there was one."""
    with as_file(files("krs.instruments") / "thresholds.json") as place:
        return read_thresholds(place) if place.is_file() else {}


def read_thresholds(path: str | Path) -> dict[str, Threshold]:
    """Thresholds that `krs calibrate` wrote; raises `KrsError` for a file that holds none."""
    try:
        told = json.loads(Path(path).read_text(encoding="utf-8"))
        return {name: Threshold(**row) for name, row in told["instruments"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as reason:
        raise KrsError(f"{str(path)!r} holds no thresholds ({reason}): make them with krs calibrate") from None


def verdict(readings: Mapping[str, Reading], by: Mapping[str, Threshold] | None = None) -> Verdict:
    """What the readings say together.

    A model that answers openly knows. Otherwise instruments vote that told models apart in the calibration and whose
    own controls read as they should here; two kinds of them have to agree, and for "does not know" one that looks at
    more than what the model says. None of it is decided by low readings of a model that one of them finds beyond all
    models that never knew: it was driven from its answers, and what it reads low in is what that broke.
    """
    by = thresholds() if by is None else by
    spoken = readings.get("recall")
    if spoken is not None and spoken.interval()[0] > 1 / 2:
        return Verdict("knows", f"it answers {spoken.mean:.0%} of the questions rightly when asked")
    if not by:
        return Verdict("cannot tell", "this version has no thresholds that readings could be held against")
    votes = tuple(_vote(name, readings[name], by[name]) for name in by if name in readings)
    return Verdict(*_weighed(votes, by), votes)


def _weighed(votes: tuple[Vote, ...], by: Mapping[str, Threshold]) -> tuple[Word, str]:
    """The word, and why."""
    counted = [v for v in votes if not v.why]
    if not counted:
        return "cannot tell", "; ".join(f"{v.instrument}: {v.why}" for v in votes) or "no instrument that tells was run"
    knows, never, between, beyond = (_kinds(counted, by, side) for side in ("knows", "never", "between", "beyond"))
    if knows and never:
        return "cannot tell", (
            f"{_listed(knows)} read as in models that know, and {_listed(never)} as in models that never knew"
        )
    if beyond and len(knows) < _ENOUGH:
        return "cannot tell", (
            f"{_listed(beyond)} read further from knowing than models that never knew do: the model was driven away "
            "from these answers, and then low readings do not say whether it knows them"
        )
    return _agreed(knows, never, between, float(np.nanmedian([v.share for v in counted])))


_Kinds = dict[str, list[str]]


def _agreed(knows: _Kinds, never: _Kinds, between: _Kinds, share: float) -> tuple[Word, str]:
    """Of votes that do not contradict each other."""
    if len(knows) >= _ENOUGH:
        return "knows", f"{_listed(knows)} read as in models that know and do not say"
    if len(never) >= _ENOUGH and never.keys() <= _TRAINED:
        return "cannot tell", (
            f"{_listed(never)} read as in models that never knew, but they look at what the model says, which is what "
            "unlearning trains: an instrument of another kind, such as relearn, has to agree"
        )
    if len(never) >= _ENOUGH:
        return "does not know", f"{_listed(never)} read as in models that never knew"
    if between and len(between.keys() | knows.keys() | never.keys()) >= _ENOUGH:
        return "partly", f"{_listed(between)} read between both; about {share:.0%} of the facts read as known"
    if alone := knows or never or between:
        return "cannot tell", f"only {_listed(alone)} tells, and two kinds of instruments have to agree"
    return "cannot tell", "all intervals reach from models that know to models that never knew: more facts would tell"


def _vote(name: str, reading: Reading, threshold: Threshold) -> Vote:
    says = threshold.vote(reading.values, reading.nulls.get("same"))
    return Vote(name, says, _failing(reading, threshold), threshold.share(reading.values))


_CONTROLS = (
    ("same", ("never", "beyond"), "the vanilla model itself as one that never knew"),
    ("never_knew", ("knows",), "the retain model as one that knows"),
)


def _failing(reading: Reading, threshold: Threshold) -> str:
    """How the instrument's own controls contradict it; empty if they do not."""
    for null, wrong, meant in _CONTROLS:
        if null in reading.nulls and threshold.vote(reading.nulls[null]) in wrong:
            return f"its control fails: it reads {meant}"
    return "it says nothing about these facts" if np.isnan(reading.values).all() else ""


def _kinds(votes: list[Vote], by: Mapping[str, Threshold], side: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for vote in votes:
        if vote.says == side:
            found.setdefault(by[vote.instrument].kind or vote.instrument, []).append(vote.instrument)
    return found


def _listed(kinds: Mapping[str, list[str]]) -> str:
    names = [name for several in kinds.values() for name in several]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def as_json(found: Verdict) -> dict[str, Any]:
    """A verdict, as JSON holds it."""
    votes = [vars(v) | {"share": None if np.isnan(v.share) else v.share} for v in found.votes]
    return {"word": found.word, "why": found.why, "votes": votes}
