"""A study as a page: what every part of the grid came to, from tables alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from krs._typing import DataFrame
from krs.errors import KrsError
from krs.pages import NOTHING, Block, Code, Listed, Map, Page, Points, Section, Switch, Table, Text
from krs.study.collected import AXES, Collected, Group, collect, made
from krs.study.curves import averages, concepts, grouped, label_of, panels_of
from krs.study.exported import Exported
from krs.study.run import Study
from krs.study.spec import Spec
from krs.study.store import Store
from krs.wording import counted

_ROWS = 1_500
"""Rows of a table, at most: strengths, then methods, are put together where there are more."""


def page_of(study: Study | Exported) -> Page:
    """A study's page; it reads one cell at a time, and no sweep's arrays.

    Raises `KrsError` for a study without a single result.
    """
    every = study.made() if isinstance(study, Exported) else made(study.spec, Store(study.folder))
    found, name = collect(study.spec, every), study.name if isinstance(study, Exported) else study.folder.name
    if not any(group.cells for group in found.groups.values()):
        raise KrsError(f"the study {name!r} has no results yet: run it first, with krs study")
    return page_from(study.spec, found, name)


def page_from(spec: Spec, found: Collected, name: str) -> Page:
    """The page of what was collected."""
    panels = panels_of(found)
    sections = [
        Section("Summary", _summary(found)),
        *averages(found, panels),
        *concepts(panels),
        *_behaviour(found),
        *_answers(found),
        *_drift(found),
        *_verdicts(found),
        Section("What failed, and warnings", _failures(found)),
        Section("Where this comes from", _origin(spec, found, name)),
    ]
    lead = (Text(_lead(spec, found)), *_scale(found))
    return Page("What a study of unlearning found", lead, tuple(sections), _switches(found), f"krs study: {name}")


def _lead(spec: Spec, found: Collected) -> str:
    states = ", ".join(f"{n:,} {state}" for state, n in sorted(found.states.items()))
    size = ", ".join(
        counted(len({key[i] for key in found.groups}), axis, plural)
        for i, (axis, plural) in enumerate(
            (("model", None), ("concept", None), ("method", None), ("strength", "strengths"))
        )
    )
    return f"{counted(found.states.total(), 'cell')} ({states}): {size}, {counted(len(spec.seeds), 'seed')}."


def _scale(found: Collected) -> tuple[Block, ...]:
    if not found.plans:
        return ()
    said = (
        "The Knowledge Recovery Score: at 0 the model is as unlearned as it was, at 1 its logits are the vanilla "
        "model's again. What is put back are activations (MLP coefficients, attention outputs), which bring with them "
        "what the vanilla model computed below, or weights (value vectors), which undo a local change only. A high "
        "score of activations does not by itself prove that knowledge is still there: a model that was never taught "
        "can score as high."
    )
    return (Text(said),)


def _switches(found: Collected) -> tuple[Switch, ...]:
    labels = ("Models", "Concepts", "Methods", "Strengths")
    axes = [
        Switch(axis, label, tuple(dict.fromkeys(key[i] for key in found.groups)))
        for i, (axis, label) in enumerate(zip(AXES, labels, strict=True))
    ]
    settings = dict.fromkeys(label_of(s) for names, _ in found.plans.values() for s in names)
    return (*axes, Switch("setting", "What is put back", tuple(settings), lines=True))


def _summary(found: Collected) -> tuple[Block, ...]:
    """A row a place in the grid: where the mean curve is highest, BLEU, drift, verdicts."""
    axes, groups = grouped(found, _ROWS, lambda group: 1)
    rows = [dict(zip(axes, key, strict=True)) | _numbers(found, key[0], group) for key, group in groups.items()]
    caption = "Each place in the grid: the highest mean score of each setting (its layer), and BLEU"
    return (Table(caption, _frame(rows), heads=len(axes), keys={axis: axis for axis in axes}), *_coarser(axes))


def _coarser(axes: tuple[str, ...]) -> tuple[Block, ...]:
    if axes == AXES:
        return ()
    pooled = " and ".join(f"{axis}s" if axis != "strength" else "strengths" for axis in AXES if axis not in axes)
    return (
        Text(
            f"The grid is larger than a page: {pooled} are put together here. The tables in results/ have each.", "note"
        ),
    )


def _numbers(found: Collected, model: str, group: Group) -> dict[str, Any]:
    row: dict[str, Any] = {"cells": group.cells}
    if group.curves.n.size:
        settings, windows = found.plans[model]
        for setting, values in zip(settings, group.curves.mean, strict=True):
            there = not np.isnan(values).all()
            at = int(np.nanargmax(values)) if there else 0
            row[label_of(setting)] = f"{values[at]:z.3f} ({windows[at]})" if there else NOTHING
    for name, pool in group.numbers.items():
        if name.startswith("BLEU"):
            row[name] = f"{pool.mean[0]:.1f}"
    if group.verdicts:
        row["verdict"] = _counts(group)
    return row


def _counts(group: Group) -> str:
    if group.verdicts.total() == 1:
        return next(iter(group.verdicts))
    return ", ".join(f"{word} ({n})" for word, n in group.verdicts.most_common())


def _frame(rows: list[dict[str, Any]]) -> DataFrame:
    import pandas as pd

    columns = dict.fromkeys(name for row in rows for name in row)
    return pd.DataFrame(rows, columns=list(columns)).astype(object).where(lambda f: f.notna(), NOTHING)


def _behaviour(found: Collected) -> Iterator[Section]:
    """Fig. 2 of each model."""
    import pandas as pd

    blocks: list[Block] = []
    for model in dict.fromkeys(key[0] for key in found.bleu):
        rows = {key[1:]: pool.mean for key, pool in found.bleu.items() if key[0] == model}
        frame = pd.DataFrame(
            [(method, strength, *values[:2]) for (method, strength), values in rows.items()],
            columns=["method", "strength", "target", "unrelated"],
        )
        if frame.unrelated.notna().any():
            points = frame.set_axis(["series", "name", "x", "y"], axis=1)
            ceilings = np.array([values[2:] for values in rows.values()])
            limits = (float(np.nanmean(ceilings[:, 0])), float(np.nanmean(ceilings[:, 1])))
            labels = ("BLEU, target questions (low: forgotten)", "BLEU, unrelated questions (high: kept)")
            size = counted(len(frame), "point")
            told = f"{model}: BLEU of target and of unrelated questions, {size}; the table has them"
            caption = (
                f"{model}: forgetting against keeping, means over concepts and seeds; dotted: the vanilla model itself"
            )
            blocks.append(Points(caption, told, points, *labels, limits, "method"))
        caption = f"{model}: BLEU (0 to 100) of each method and strength, means over concepts and seeds"
        blocks.append(Table(caption, frame, heads=2, keys={"method": "method", "strength": "strength"}, digits=2))
    if blocks:
        yield Section("Forgetting and keeping", tuple(blocks))


def _answers(found: Collected) -> Iterator[Section]:
    if not found.answers:
        return
    frame = _frame(found.answers)
    for axis in ("model", "strength"):
        if frame[axis].nunique() == 1:
            frame = frame.drop(columns=axis)
    names = {"vanilla": "before (vanilla)", "unlearned": "after (unlearned)"}
    frame = frame.rename(columns=names)
    keys = {axis: axis for axis in AXES if axis in frame}
    blocks: list[Block] = [
        Table("Answers before, after and, where that was heard, restored", frame, len(keys), keys, texts=True)
    ]
    if len(frame) < found.n_answers:
        few = f"{len(frame):,} of {found.n_answers:,} answers are on this page (one seed, and what fits)"
        said = f"{few}; answers.csv in results/ has all."
        blocks.insert(0, Text(said, "note"))
    if "restored" not in frame:
        blocks.insert(0, Text("Restored answers need the step restored in the study's spec."))
    yield Section("Answers", tuple(blocks))


def _drift(found: Collected) -> Iterator[Section]:
    """How far weights have moved, by component and layer."""
    import pandas as pd

    blocks: list[Block] = []
    rows = []
    for (model, method), pool in found.drift.items():
        components, layers = found.places[model, method]
        table = pd.DataFrame(
            pool.mean,
            index=[c.replace("_", " ") for c in components],
            columns=["outside" if layer < 0 else str(layer) for layer in layers],
        )
        n = counted(int(pool.n.max()), "cell")
        caption = f"{method}, {model}: change of the weights over their norm, mean of {n}"
        biggest = table.max(axis=1).sort_values(ascending=False)
        told = f"{caption}. " + "; ".join(f"{c} at most {v:.2g}" for c, v in biggest.dropna().items())
        keys = {"model": model, "method": method}
        blocks.append(Map(caption, told, table, "Layer", "", "relative change", keys=keys))
    for (model, method), group in found.pooled(("model", "method")).items():
        row = {n.removeprefix("drift "): p.mean[0] for n, p in group.numbers.items() if n.startswith("drift ")}
        if row:
            rows.append({"model": model, "method": method} | row)
    if blocks:
        caption = "Relative change by component, layers together, mean over cells"
        blocks.append(Table(caption, pd.DataFrame(rows), heads=2, keys={"model": "model", "method": "method"}))
        yield Section("How far the weights have moved", tuple(blocks))


def _verdicts(found: Collected) -> Iterator[Section]:
    """What instruments read, where the study asked them."""
    axes, groups = grouped(found, _ROWS, lambda group: 1)
    rows = []
    for key, group in groups.items():
        if group.verdicts:
            read = {n.removeprefix("reading "): p.mean[0] for n, p in group.numbers.items() if n.startswith("reading ")}
            rows.append(dict(zip(axes, key, strict=True)) | {"verdict": _counts(group)} | read)
    if rows:
        caption = "Verdicts, and the means of what each instrument read"
        table = Table(caption, _frame(rows), heads=len(axes), keys={axis: axis for axis in axes})
        yield Section("Has it forgotten, or does it only not say?", (table, *_coarser(axes)))


def _failures(found: Collected) -> tuple[Block, ...]:
    blocks: list[Block] = []
    if found.failed:
        more = found.states["failed"] - len(found.failed)
        items = [f"{cell}: {error}" for cell, error in found.failed] + ([f"and {more:,} more"] if more else [])
        blocks += [Text(f"{counted(found.states['failed'], 'cell')} failed:"), Listed(tuple(items))]
    if found.warnings:
        told = [f"{text} ({counted(n, 'time')})" if n > 1 else text for text, n in found.warnings.most_common(20)]
        blocks += [Text("Warnings:"), Listed(tuple(told))]
    return tuple(blocks) or (Text("Nothing failed, and there were no warnings."),)


def _origin(asked: Spec, found: Collected, name: str) -> tuple[Block, ...]:
    """The commands, the spec and the versions."""
    import yaml

    first, last = found.made
    commands = f"krs study study.yaml -o {name}\nkrs report {name}"
    spec = yaml.safe_dump(asked.model_dump(exclude_defaults=True), sort_keys=False, allow_unicode=True)
    versions = "; ".join(found.versions) or "not known"
    told = f"Made from {first} to {last}; {found.seconds:,.0f} s of work. Versions that count: {versions}."
    return (Text(told), Code("The commands that made it", commands, unfolded=True), Code("study.yaml", spec))
