"""A study's curves on its page: averages over what is switched on, and each concept's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from krs._typing import DataFrame
from krs.errors import KrsError
from krs.pages import Average, Block, Lines, Section, Table, peaks
from krs.study.collected import AXES, Collected, Group, Key
from krs.wording import counted

_CURVES = 50_000
"""Numbers of curves on a page, at most: strengths, then methods, are put together where there are more."""
_WAYS = (AXES, AXES[:3], AXES[:2])
_BANDS = "mean over {}; band: ± 1 SD"


def label_of(setting: str) -> str:
    """A setting as figures call it; of a point that is not known here, its name."""
    from krs.hooks import setting as known

    try:
        return known(setting).label
    except KrsError:
        return setting


def grouped(found: Collected, most: int, size: Any) -> tuple[tuple[str, ...], dict[Key, Group]]:
    """The groups, as fine as fits."""
    for axes in _WAYS:
        groups = found.pooled(axes)
        if sum(size(group) for group in groups.values()) <= most:
            break
    return axes, groups


def panels_of(found: Collected) -> dict[Key, Lines]:
    """A figure for each place in the grid."""
    axes, groups = grouped(found, _CURVES, lambda group: group.curves.n.size)
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


def averages(found: Collected, panels: dict[Key, Lines]) -> Iterator[Section]:
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


def concepts(panels: dict[Key, Lines]) -> Iterator[Section]:
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
