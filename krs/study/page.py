"""A study as a page: what every part of the grid came to, from tables alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from krs._typing import DataFrame
from krs.errors import KrsError
from krs.pages import (
    NOTHING,
    Average,
    Block,
    Code,
    Lines,
    Listed,
    Map,
    Page,
    Points,
    Section,
    Switch,
    Table,
    Text,
    peaks,
)
from krs.study.collected import AXES, Collected, Group, Key, collect, made
from krs.study.exported import Exported
from krs.study.run import Study
from krs.study.spec import Spec
from krs.study.store import Store
from krs.wording import counted

_CURVES = 50_000
"""Numbers of curves on a page, at most: strengths, then methods, are put together where there are more."""
_ROWS = 1_500
_WAYS = (AXES, AXES[:3], AXES[:2])
_BANDS = "mean over {}; band: ± 1 SD"


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
    panels = _panels(found)
    sections = [
        Section("Summary", _summary(found)),
        *_averages(found, panels),
        *_concepts(panels),
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


def label_of(setting: str) -> str:
    """A setting as figures call it; of a point that is not known here, its name."""
    from krs.hooks import setting as known

    try:
        return known(setting).label
    except KrsError:
        return setting


def _groups(found: Collected, most: int, size: Any) -> tuple[tuple[str, ...], dict[Key, Group]]:
    """The groups, as fine as fits."""
    for axes in _WAYS:
        groups = found.pooled(axes)
        if sum(size(group) for group in groups.values()) <= most:
            break
    return axes, groups


def _summary(found: Collected) -> tuple[Block, ...]:
    """A row a place in the grid: where the mean curve is highest, BLEU, drift, verdicts."""
    axes, groups = _groups(found, _ROWS, lambda group: 1)
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


def _panels(found: Collected) -> dict[Key, Lines]:
    """A figure for each place in the grid."""
    axes, groups = _groups(found, _CURVES, lambda group: group.curves.n.size)
    made = {}
    for key, group in groups.items():
        if group.curves.n.size:
            title = ", ".join(key[2:]) or "all methods"
            n = int(group.curves.n.max())
            caption = f"{title}: " + (_BANDS.format(counted(n, "cell")) if n > 1 else "one cell")
            keys = dict(zip(axes, key, strict=True))
            made[key] = _lines(found, key[0], group, caption, f"{key[1]}, {title}", keys)
    return made


def _lines(found: Collected, model: str, group: Group, caption: str, about: str, keys: dict[str, str]) -> Lines:
    settings, windows = found.plans[model]
    pool = group.curves

    def table(values: np.ndarray) -> DataFrame:
        import pandas as pd

        return pd.DataFrame(values.T, index=[str(w) for w in windows], columns=[label_of(s) for s in settings])

    return Lines(
        caption,
        f"Score over {counted(len(windows), 'window')}, {about}: {peaks(table(pool.mean))}",
        table(pool.mean),
        n=table(pool.n.astype(float)),
        sd=table(pool.sd),
        x_label="Layer (centre of the window)",
        axis="setting",
        keys=keys,
    )


def _averages(found: Collected, panels: dict[Key, Lines]) -> Iterator[Section]:
    """Of each model: over everything that is switched on, and method by method."""
    models = list(dict.fromkeys(key[0] for key in panels))
    if not models:
        return
    parts = []
    for model in models:
        mine = {key: lines for key, lines in panels.items() if key[0] == model}
        whole = found.pooled(("model",))[(model,)]
        told = _lines(found, model, whole, "", "", {})
        n = counted(int(whole.curves.n.max()), "cell")
        caption = f"{model}: mean over the cells that are switched on (all together {n}); band: ± 1 SD between cells"
        blocks: list[Block] = [
            Average(caption, f"Mean score over all {n}: {peaks(told.table)}", tuple(mine.values()), {"model": model}),
            _mean_table(f"{model}: mean over all {n}, standard deviation, and number of cells", told),
        ]
        methods = list(dict.fromkeys(key[2] for key in mine if len(key) > 2))
        by_method = found.pooled(("model", "method"))
        inner: list[Block] = []
        for method in methods if len(methods) > 1 else []:
            about = peaks(_lines(found, model, by_method[model, method], "", "", {}).table)
            of = tuple(lines for key, lines in mine.items() if key[2] == method)
            inner.append(
                Average(
                    f"{method}: mean ± 1 SD", f"Mean score of {method}: {about}", of, {"model": model, "method": method}
                )
            )
        deeper = (Section(f"{model}, each method", tuple(inner)),) if inner else ()
        parts.append(Section(model, tuple(blocks), deeper, {"model": model}))
    yield Section("Averages", (), tuple(parts))


def _mean_table(caption: str, lines: Lines) -> Table:
    import pandas as pd

    assert lines.sd is not None
    assert lines.n is not None
    parts = {}
    for name in lines.table.columns:
        parts[name], parts[f"SD {name}"] = lines.table[name], lines.sd[name]
    frame = pd.DataFrame(parts).assign(cells=lines.n.max(axis=1).astype(int))
    return Table(caption, frame.rename_axis("layer").reset_index(), axis="setting", digits=4, folded=True)


def _concepts(panels: dict[Key, Lines]) -> Iterator[Section]:
    """Each concept's curves, method by method, with their numbers."""
    import pandas as pd

    parts = []
    for model, concept in dict.fromkeys(key[:2] for key in panels):
        mine = {key: lines for key, lines in panels.items() if key[:2] == (model, concept)}
        rows = []
        for key, lines in mine.items():
            frame = lines.table.rename_axis("layer").reset_index()
            for i, axis in reversed(list(enumerate(AXES[2 : len(key)]))):
                frame.insert(0, axis, key[2 + i])
            rows.append(frame)
        deep = max(len(key) for key in mine) - 2
        table = Table(
            f"{concept}, {model}: means by window",
            pd.concat(rows, ignore_index=True),
            heads=deep + 1,
            keys={axis: axis for axis in AXES[2 : 2 + deep]},
            axis="setting",
            digits=4,
            folded=True,
        )
        several = len({key[0] for key in panels}) > 1
        title = f"{concept} ({model})" if several else concept
        parts.append(Section(title, (*mine.values(), table), (), {"concept": concept, "model": model}))
    if parts:
        yield Section("Each concept", (), tuple(parts))


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
        components, layers = found.places[model]
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
    axes, groups = _groups(found, _ROWS, lambda group: 1)
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
