"""What `dissect` found: the verdict, the evidence with its intervals, and one file or page that holds it all."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from krs._typing import DataFrame
from krs.errors import KrsError
from krs.instruments.facts import Fact, as_facts
from krs.instruments.page import page
from krs.instruments.reading import Reading, mean, smallest_difference
from krs.instruments.verdict import Verdict, Vote, as_json
from krs.notebook import as_html
from krs.writing import write_text

_FORMAT = 1


@dataclass(frozen=True, repr=False, eq=False)
class Dissection:
    """The result of `krs.dissect`.

    Attributes:
        verdict: in a word, with the reason.
        readings: of each instrument that was run, by name.
        left_out: of each instrument that was not, the reason.
        facts: the target.
        said: what the models say to the target's questions, `{model: [answer, …]}`.
        provenance: models, settings, versions, time.
    """

    verdict: Verdict
    readings: dict[str, Reading]
    left_out: dict[str, str]
    facts: tuple[Fact, ...]
    said: dict[str, list[str]] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def evidence(self) -> DataFrame:
        """A row an instrument: its mean with a 95 % interval, the means of its nulls, and how it votes.

        `shows` is the smallest difference of means that so many facts would have shown with a power of 0.8.
        """
        import pandas as pd

        votes = {vote.instrument: vote for vote in self.verdict.votes}
        rows = []
        for name, reading in self.readings.items():
            low, high = reading.interval()
            vote = votes.get(name)
            rows.append(
                {
                    "instrument": name,
                    "mean": reading.mean,
                    "low": low,
                    "high": high,
                    "unit": reading.unit,
                    "knows": reading.knows,
                    **{f"null: {null}": mean(values) for null, values in reading.nulls.items()},
                    "shows": smallest_difference(reading.values),
                    "vote": "" if vote is None else (f"none ({vote.why})" if vote.why else vote.says),
                    "seconds": reading.seconds,
                }
            )
        return pd.DataFrame(rows).set_index("instrument") if rows else pd.DataFrame()

    @property
    def by_fact(self) -> DataFrame:
        """A row a fact, a column an instrument."""
        import pandas as pd

        columns = {name: r.values for name, r in self.readings.items() if len(r.values) == len(self.facts)}
        return pd.DataFrame({"question": [f.question for f in self.facts], **columns})

    @property
    def answers(self) -> DataFrame:
        """What each model says to each question, beside the right answer."""
        import pandas as pd

        asked = {"question": [f.question for f in self.facts], "right": [f.answer for f in self.facts]}
        return pd.DataFrame(asked | self.said)

    def __repr__(self) -> str:
        lines = [f"Dissection: {self.verdict}", *(f"  {reading!r}" for reading in self.readings.values())]
        return "\n".join(lines + [f"  {name}: not run ({why})" for name, why in self.left_out.items()])

    def _repr_html_(self) -> str:
        left_out = (f"{name}: not run ({why})" for name, why in self.left_out.items())
        table = self.evidence.dropna(axis=1, how="all").drop(columns="seconds", errors="ignore")
        return as_html(f"Dissection: {self.verdict}", table, left_out, number="z.3g")

    def save(self, path: str | Path) -> Path:
        """Write a page (`.html`) or everything as JSON (`.json`, which `load_dissection` reads), in one step."""
        place = Path(path)
        if place.suffix == ".html":
            write_text(place, page(self.verdict, self.readings, self.left_out, self.answers, self.provenance))
        elif place.suffix == ".json":
            write_text(place, json.dumps(self.as_json(), ensure_ascii=False, indent=1))
        else:
            raise KrsError(f"{str(path)!r}: give a name that ends in .html (a page) or .json (the data)")
        return place

    def as_json(self) -> dict[str, Any]:
        """Everything, as JSON holds it. Docs: dissect."""
        return {
            "krs_dissection": _FORMAT,
            "verdict": as_json(self.verdict),
            "readings": {name: reading.as_json() for name, reading in self.readings.items()},
            "left_out": self.left_out,
            "facts": [vars(fact) for fact in self.facts],
            "said": self.said,
            "provenance": self.provenance,
        }


def load_dissection(path: str | Path) -> Dissection:
    """Read what `Dissection.save` wrote as JSON; raises `KrsError` for anything else."""
    try:
        told = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as reason:
        raise KrsError(f"cannot read {str(path)!r}: {reason.strerror}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as reason:
        raise KrsError(f"{str(path)!r} does not hold a dissection ({reason}): give the .json of one") from None
    if not isinstance(told, dict) or told.get("krs_dissection") != _FORMAT:
        raise KrsError(f"{str(path)!r} does not hold a dissection (format {_FORMAT}): give the .json of one")
    try:
        facts = as_facts(told["facts"])
        _check_texts(told, len(facts))
        cast = told["verdict"]["votes"]
        votes = tuple(Vote(**v | {"share": np.nan if v["share"] is None else v["share"]}) for v in cast)
        return Dissection(
            Verdict(told["verdict"]["word"], told["verdict"]["why"], votes),
            {name: Reading.from_json(r) for name, r in told["readings"].items()},
            told["left_out"],
            facts,
            told["said"],
            told["provenance"],
        )
    except (KeyError, TypeError, ValueError, AttributeError, KrsError) as reason:
        raise KrsError(f"{str(path)!r} does not hold a whole dissection ({reason}): make it again") from None


def _check_texts(told: dict[str, Any], facts: int) -> None:
    """Raise `TypeError` for texts that are none, and for other numbers of answers than of facts."""
    verdict, left_out, said = told["verdict"], told["left_out"], told["said"]
    texts = [verdict["word"], verdict["why"], *left_out.values()]
    for name, answers in said.items():
        if len(answers) != facts:
            raise TypeError(f"{name} has {len(answers)} answers to {facts} facts")
        texts += answers
    if not all(isinstance(text, str) for text in texts) or not isinstance(told["provenance"], dict):
        raise TypeError("something else where a text should be")
