"""Tables over all cells, and the paper's two figures drawn from them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from krs._typing import DataFrame
from krs.errors import KrsError
from krs.extras import installed
from krs.study.carry import Carrier
from krs.study.grid import Cell, cells, slug
from krs.study.manifest import digest_of
from krs.study.spec import Spec
from krs.study.store import Store
from krs.study.tables import read_file, read_table
from krs.study.tables import written as csv_text
from krs.wording import counted, heights
from krs.writing import clear_unfinished, write_text

TABLES = {
    "krs": ("sweep", "krs.csv"),
    "answers": ("answers", "answers.csv"),
    "drift": ("drift", "drift.csv"),
    "dissect": ("dissect", "evidence.csv"),
    "completions": ("completions", "completions.csv"),
    "vocabulary": ("vocabulary", "vocabulary.csv"),
}
"""By name of a table: the step and the file that it is made of."""


def table(spec: Spec, store: Store, name: str) -> DataFrame:
    """One table of all cells that have it, each row with its cell's place in the grid.

    Raises `KrsError` for a table that there is not.
    """
    import pandas as pd

    if name not in TABLES:
        raise KrsError(f"there is no table {name!r}: there are {', '.join(TABLES)}")
    step, file = TABLES[name]
    parts = []
    for cell, folder in _finished(spec, store, step):
        part = read_table(read_file(folder / file))
        for i, (axis, value) in enumerate({"cell": cell.name, **cell.where}.items()):
            part.insert(i, axis, "" if value is None else value)
        parts.append(part)
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def write(spec: Spec, store: Store, anew: bool = True) -> list[str]:
    """Write tables and figures into `results/`; returns their names. Nothing new: nothing is written."""
    with store.lock("results"):
        return _write(spec, store, anew)


def _write(spec: Spec, store: Store, anew: bool) -> list[str]:
    folder, written = store.root / "results", []
    wanted = [name for name, (step, _) in TABLES.items() if step in spec.steps]
    mark, asked = folder / "made_from.json", digest_of(spec.model_dump())
    if not wanted or (not anew and mark.is_file() and json.loads(mark.read_text(encoding="utf-8")) == asked):
        return []
    mark.unlink(missing_ok=True)
    clear_unfinished(folder)
    found = {name: table(spec, store, name) for name in wanted}
    for name, frame in found.items():
        if len(frame):
            write_text(folder / f"{name}.csv", csv_text(frame))
            written.append(f"{name}.csv")
    if installed("matplotlib"):
        written += _figures(found, folder)
    write_text(mark, json.dumps(asked))
    return written


def _figures(found: dict[str, DataFrame], folder: Path) -> list[str]:
    from krs.plots import save_curves, save_points
    from krs.study.curves import label_of

    written = []
    for model, part in _by_model(found.get("krs")):
        save_curves(part, folder / f"fig1-{slug(model)}.png", label_of, *_told_curves(model, part))
        written.append(f"fig1-{slug(model)}.png")
    for model, part in _by_model(found.get("answers")):
        if set(part.side) == {"target", "unrelated"}:
            shown = points(part)
            save_points(shown, folder / f"fig2-{slug(model)}.png", *_told_points(model, shown))
            written.append(f"fig2-{slug(model)}.png")
    return written


def _told_curves(model: str, part: DataFrame) -> tuple[str, str]:
    """A title of the first figure, and in words what it shows: where each setting's mean is highest and lowest."""
    from krs.study.curves import label_of

    by_cell = part.groupby(["cell", "setting", "window"], sort=False).krs.mean()
    peaks = []
    mean = by_cell.groupby(["setting", "window"], sort=False).mean().dropna()
    for setting in dict.fromkeys(part.setting):
        there = mean[mean.index.get_level_values("setting") == setting].droplevel("setting")
        peaks.append(f"{label_of(str(setting))}: {heights(there.tolist(), [f'layer {w}' for w in there.index])}")
    title = f"Knowledge Recovery Score: {model}"
    about = f"{title}, by layer, mean of {counted(part.cell.nunique(), 'cell')}. "
    return title, f"{about}0 is as unlearned, 1 the vanilla model. {'; '.join(peaks)}."


def _told_points(model: str, shown: DataFrame) -> tuple[str, str]:
    """A title of the second figure, and its numbers."""
    rows = [f"{r.method} {r.strength}: {r.target:.1f} and {r.unrelated:.1f}" for r in shown.itertuples()]
    title = f"BLEU on target and on unrelated questions: {model}"
    ceiling = f"the vanilla model itself: {shown.target_ceiling.mean():.1f} and {shown.unrelated_ceiling.mean():.1f}"
    return title, f"{title}. {'; '.join([*rows, ceiling])}."


def points(answers: DataFrame) -> DataFrame:
    """Of the table of answers, what Fig. 2 shows: a row a method and strength, means over concepts and seeds.

    Columns: `method`, `strength`, `target` and `unrelated` (BLEU, 0 to 100), `target_ceiling`, `unrelated_ceiling`.
    """
    import pandas as pd

    cell = answers.groupby(["method", "strength", "cell", "side"], sort=False)[["bleu", "ceiling"]].mean()
    means = cell.groupby(["method", "strength", "side"], sort=False).mean().unstack("side")
    sides = ["target", "unrelated"]
    found: dict[str, Any] = {side: means["bleu"][side] for side in sides}
    found |= {f"{side}_ceiling": means["ceiling"][side] for side in sides}
    rows = pd.DataFrame(found).reset_index()
    return answers[["method", "strength"]].drop_duplicates().merge(rows)


def _by_model(frame: DataFrame | None) -> Iterator[tuple[str, DataFrame]]:
    if frame is not None and len(frame):
        for model, part in frame.groupby("model", sort=False):
            yield str(model), part


def _finished(spec: Spec, store: Store, wanted: str) -> Iterator[tuple[Cell, Path]]:
    carrier = Carrier(spec, store)
    for cell in cells(spec):
        for made, _, found in carrier.states(cell):
            if made.name == wanted and found is not None:
                yield cell, store.folder(made.name, found.key)
