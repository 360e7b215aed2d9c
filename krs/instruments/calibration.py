"""The instruments put to the test, on models whose truth is known because of how they were made.

`calibrate` reads every instrument on the models of the world `CALIBRATION` and asks how well it tells those that know
and do not say from those that never knew and do not say either; thresholds for verdicts come from these readings.
`check_verdicts` then asks for verdicts on the models of the world `VERDICT`, of which no threshold has seen one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from krs._typing import DataFrame
from krs.errors import KrsError
from krs.instruments.case import Case
from krs.instruments.facts import Fact
from krs.instruments.instrument import Instrument, instrument, instruments
from krs.instruments.kept import Kept, subject_of
from krs.instruments.reading import Reading
from krs.instruments.truth import CALIBRATION, VERDICT, Truth, TruthModel
from krs.instruments.truth import load as load_truth
from krs.instruments.verdict import Threshold, Verdict, verdict
from krs.models.provenance import machine, now, versions
from krs.progress import bar
from krs.wording import as_text
from krs.writing import write_text

KINDS = {
    "likelihood": ("nll", "nll_tail", "paraphrase", "truth_ratio"),
    "saying": ("recall", "prefix", "exact_memorisation", "extraction_strength"),
    "states": ("uds", "uds_inner", "state_drop", "logit_lens", "probe"),
    "restoring": ("krs", "held_out_restoration", "transplant", "account"),
    "relearning": ("relearn", "relearn_unrelated", "relearn_same"),
    "rounding": ("quantise_4", "quantise_8"),
}
"""Instruments that look at one thing: they have one vote together."""

_BASELINES = ("nll", "recall")
"""What the models were matched in; they decide nothing themselves."""
_TELLS = 0.9
"""The AUC from which on an instrument has a vote."""


@dataclass(frozen=True)
class Row:
    """One model and what an instrument read on it.

    Attributes:
        model: its name.
        known: whether it knows the target; `None` for a part of it, or where that is not known.
        grade: how much of it, from 0 to 1; `None` where that is not known.
        silent: whether it was made not to say it.
        reading: without nulls.
    """

    model: str
    known: bool | None
    grade: float | None
    silent: bool
    reading: Reading


@dataclass(frozen=True, repr=False)
class Calibration:
    """Every instrument on every model.

    Attributes:
        rows: by instrument.
        base: what the models were made from.
        same: by instrument, what the vanilla model itself reads.
    """

    rows: Mapping[str, Sequence[Row]]
    base: str
    same: Mapping[str, float] = field(default_factory=dict)

    def table(self) -> DataFrame:
        """A row an instrument.

        `auc`: the share of pairs of a model that knows and one that never knew, both silent, that it puts in the right
        order. `rank`: Spearman's correlation with the constructed grades. `false_knows`: the share of models that never
        knew which read beyond the middle of both groups. `seconds`: the median cost of a reading.
        """
        import pandas as pd

        found = {name: self._figures(rows) for name, rows in self.rows.items()}
        table = pd.DataFrame.from_dict(found, orient="index").rename_axis("instrument")
        return table.sort_values(["auc", "seconds"], ascending=[False, True])

    def thresholds(self) -> dict[str, Threshold]:
        """Of the instruments whose AUC is 0.9 or more, the baselines left out; see `Threshold`."""
        kinds = {name: kind for kind, names in KINDS.items() for name in names}
        found = {}
        for name, rows in self.rows.items():
            knows, never = _groups(rows)
            told = auc(knows, never)
            if name in _BASELINES or not told >= _TELLS:
                continue
            sign = 1.0 if rows[0].reading.knows == "high" else -1.0
            least, most = float(min(knows)), float(max(never))
            # Where both groups lie apart, a third of the way between them from either side; else beyond the overlap.
            low, high = (most + (least - most) / 3, least - (least - most) / 3) if least > most else (least, most)
            if low == high:  # what both groups read is no vote, and which side is which has to be seen
                low, high = np.nextafter(low, -np.inf), np.nextafter(high, np.inf)
            same = self.same.get(name, float("nan"))
            furthest = sign * float(min(never))
            found[name] = Threshold(float(sign * high), float(sign * low), told, kinds.get(name, name), same, furthest)
        return found

    def told(self) -> DataFrame:
        """A row an instrument and silent model of constructed truth, as `krs.plots.calibration.plot_told` takes them.

        Instruments come as in `table`, the paper's score first.
        """
        import pandas as pd

        order = sorted(self.table().index, key=lambda name: name != "krs")
        aucs = self.table().auc
        found = [
            {
                "instrument": name,
                "model": row.model,
                "known": row.known,
                "knowledge": row.reading.knowledge,
                "auc": aucs[name],
            }
            for name in order
            for row in self.rows[name]
            if row.silent and row.known is not None and not np.isnan(row.reading.knowledge)
        ]
        return pd.DataFrame(found)

    def save(self, path: str | Path) -> None:
        """Write thresholds, table and every reading's mean as JSON, in one step."""
        told = {
            "base": self.base,
            "made": now(),
            "versions": versions(),
            "machine": machine(),
            "instruments": {name: _numbers(t) for name, t in self.thresholds().items()},
            "table": json.loads(self.table().to_json(orient="index")),
            "means": {name: {row.model: row.reading.mean for row in rows} for name, rows in self.rows.items()},
            "models": {
                r.model: {"known": r.known, "grade": r.grade, "silent": r.silent}
                for r in next(iter(self.rows.values()))
            },
        }
        write_text(path, json.dumps(told, indent=1, ensure_ascii=False))

    def __repr__(self) -> str:
        return f"Calibration on {self.base}\n{as_text(self.table(), 2)}"

    def _figures(self, rows: Sequence[Row]) -> dict[str, Any]:
        knows, never = _groups(rows)
        read = [r for r in rows if not np.isnan(r.reading.knowledge)]
        graded = [(r.grade, r.reading.knowledge) for r in read if r.grade is not None]
        middle = (knows.mean() + never.mean()) / 2 if len(knows) and len(never) else np.nan
        return {
            "auc": auc(knows, never),
            "rank": spearman(graded),
            "false_knows": float((never > middle).mean()) if len(never) else np.nan,
            "knows": abs(float(knows.mean())) if len(knows) else np.nan,
            "never": abs(float(never.mean())) if len(never) else np.nan,
            "unit": rows[0].reading.unit,
            "models": len(rows),
            "seconds": float(np.median([r.reading.seconds for r in rows])),
        }


def _numbers(threshold: Threshold) -> dict[str, Any]:
    """Without what there is no number for, which JSON has no word for."""
    return {name: value for name, value in vars(threshold).items() if name == "kind" or not np.isnan(value)}


def calibrate(
    directory: str | Path,
    *,
    only: Iterable[str | Instrument] | None = None,
    models: Iterable[str] | None = None,
    progress: bool = True,
) -> Calibration:
    """Read instruments on the models of `CALIBRATION` in a directory (`krs.instruments.truth.make` made them).

    Readings are kept beside the models: called again, only what is missing is read.

    Args:
        directory: of the models.
        only: instruments, by name or as instances; all if not given.
        models: names of models; all that there are if not given.
        progress: show a bar.

    Raises `KrsError` where there are no models.
    """
    truth = load_truth(directory, CALIBRATION)
    tools = [instrument(one) for one in (instruments() if only is None else only)]
    wanted = _chosen(_subjects(truth), models)
    rows: dict[str, list[Row]] = {}
    with bar((len(wanted) + 1) * len(tools), "calibrate", show=progress, unit="reading") as shown:
        for model in wanted:
            for tool, reading in _readings(truth, model, tools, shown):
                row = Row(model.name, model.known, model.grade, silent(model), reading)
                rows.setdefault(tool.name, []).append(row)
        if not rows:
            raise KrsError(f"there is nothing to read in {str(directory)!r}: make the models first")
        votes = [tool for tool in tools if "same" in tool.nulls]
        same = {tool.name: found.mean for tool, found in _readings(truth, truth.vanilla, votes, shown)}
    return Calibration(rows, truth.base, same)


def check_verdicts(
    directory: str | Path, by: Mapping[str, Threshold], *, retain: bool = True, progress: bool = True
) -> DataFrame:
    """Verdicts on the models of `VERDICT`, of which no threshold has seen one: a row a model, with its truth.

    With `retain=False` instruments that need the retain model are left out, and so is the null that it is.
    """
    import pandas as pd

    truth = load_truth(directory, VERDICT)
    rows = []
    wanted = _subjects(truth)
    tools = [instrument(n) for n in (*_BASELINES, *(n for n in by if n not in _BASELINES))]
    controls = {"same": truth.vanilla} | ({"never_knew": _retain(truth)} if retain else {})
    with bar((len(wanted) + len(controls)) * len(tools), "verdicts", show=progress, unit="reading") as shown:
        nulls = {null: dict(_readings(truth, one, tools, shown, retain)) for null, one in controls.items()}
        for model in wanted:
            found = {}
            for tool, reading in _readings(truth, model, tools, shown, retain):
                beside = {
                    null: read[tool].values for null, read in nulls.items() if null in tool.nulls and tool in read
                }
                found[tool.name] = replace(reading, nulls=beside)
            said = verdict(found, by)
            rows.append({"model": model.name, "grade": model.grade, **_judged(model, said), "why": said.why})
    return pd.DataFrame(rows).set_index("model")


def _judged(model: TruthModel, said: Verdict) -> dict[str, Any]:
    """Whether a verdict is decided, and whether it is wrong: the opposite of what is so, or a part for a whole.

    Of a model that knows a part no verdict counts as wrong.
    """
    right = {True: ("knows",), False: ("does not know",), None: ("partly", "knows", "does not know")}[model.known]
    decided = said.word != "cannot tell"
    return {"verdict": said.word, "decided": decided, "wrong": decided and said.word not in right}


def _subjects(truth: Truth) -> list[TruthModel]:
    """Every model but the vanilla one and the retain one, which are what others are compared with."""
    return [m for name, m in truth.models.items() if name not in ("full", "retain")]


def _chosen(there: list[TruthModel], names: Iterable[str] | None) -> list[TruthModel]:
    """Those of these names; `KrsError` for a name that there is not."""
    if names is None:
        return there
    wanted = list(names)
    known = [model.name for model in there]
    if unknown := [name for name in wanted if name not in known]:
        raise KrsError(f"models= has {unknown[0]!r}, which was not made: there are {', '.join(known) or 'none'}")
    return [model for model in there if model.name in wanted]


@lru_cache(maxsize=1)
def _base(folder: Path, retain: bool, _made: str) -> Case:
    """The vanilla model in place of the unlearned one, with what all cases of a world share; `_made` tells worlds of
    one folder apart."""
    truth = load_truth(folder.parent, folder.name)
    vanilla, tokenizer = truth.vanilla.load()
    assert tokenizer is not None
    never = _retain(truth).load()[0] if retain else None
    return Case.make(vanilla, vanilla, tokenizer, facts_of(truth.facts.a), facts_of(truth.facts.b), never)


def _retain(truth: Truth) -> TruthModel:
    if "retain" not in truth.models:
        raise KrsError(f"{str(truth.folder)!r} has no model 'retain' yet: make it first (krs.instruments.truth.make)")
    return truth.models["retain"]


def _mark(models: Sequence[TruthModel]) -> str:
    """What changes when one of these models is made again."""
    files = (file for model in models for file in sorted(model.folder.iterdir()))
    return " ".join(f"{file.name} {file.stat().st_mtime_ns} {file.stat().st_size}" for file in files)


def _readings(
    truth: Truth, model: TruthModel, tools: Sequence[Instrument], shown: Any, retain: bool = True
) -> Iterator[tuple[Instrument, Reading]]:
    """Each instrument that applies to a model, read or as it is kept."""
    base = _base(truth.folder, retain, _mark([truth.vanilla, *([_retain(truth)] if retain else [])]))
    own = {"full": base.vanilla, "retain": base.retain}.get(model.name)
    case = replace(base, unlearned=own if own is not None else model.load()[0], kept={})
    kept = Kept(truth.folder / "readings" / model.name, subject_of(case))
    for tool in tools:
        if tool.lacks(case) is None:
            reading = kept.find(tool, nulls=False)
            if reading is None:
                reading = tool.read(case, nulls=False)
                kept.add(tool, False, reading)
            else:
                shown.initial += 1
            yield tool, reading
        shown.update()


def facts_of(invented: Iterable[Any]) -> tuple[Fact, ...]:
    """Invented facts as instruments take them: with whole wrong answers, and questions that were never taught."""
    return tuple(Fact(f.question, f.answer, f.held_out, f.wrong_answers, f.key, f.subject) for f in invented)


def silent(model: TruthModel) -> bool:
    """Whether it answers hardly any question of the target: models are compared with their like in what they say."""
    return model.figures()["a_recall"] <= 1 / 4


def _groups(rows: Sequence[Row]) -> tuple[np.ndarray, np.ndarray]:
    """`knowledge` of the silent models that know, and of those that never knew."""
    kept = [r for r in rows if r.silent and not np.isnan(r.reading.knowledge)]
    knows, never = ([r.reading.knowledge for r in kept if r.known is which] for which in (True, False))
    return np.array(knows), np.array(never)


def auc(above: np.ndarray, below: np.ndarray) -> float:
    """The share of pairs in which the first is larger, equal ones counting half; NaN without pairs.

    >>> auc(np.array([2.0, 3.0]), np.array([1.0, 2.0]))
    0.875
    """
    if not len(above) or not len(below):
        return float("nan")
    return float(np.mean([(a > b) + (a == b) / 2 for a in above for b in below]))


def spearman(pairs: Sequence[tuple[float, float]]) -> float:
    """Rank correlation, ties at their mean rank; NaN for fewer than three pairs.

    >>> spearman([(0.0, 1.0), (0.5, 4.0), (1.0, 9.0)])
    1.0
    """
    import pandas as pd

    if len(pairs) < 3:
        return float("nan")
    table = pd.DataFrame(pairs, columns=["a", "b"]).rank()
    return float(table["a"].corr(table["b"]))
