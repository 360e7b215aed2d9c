"""A result in other forms: token by token, as LaTeX, as xarray."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from krs._typing import DataFrame, Dataset
from krs.errors import KrsError
from krs.extras import require
from krs.prompts import Ids
from krs.restore.plan import Named, Plan, chosen_columns
from krs.restore.scores import Scores


def tokens(
    scores: Scores,
    token_ids: Sequence[tuple[Ids, Ids]],
    pieces: Sequence[Sequence[str]],
    prompt: int,
    setting: Named | None,
    measure: str,
    recovery: bool,
    position: int | None,
) -> DataFrame:
    """See `SweepResult.tokens`."""
    import pandas as pd

    plan, mask = scores.plan, scores.losses.mask
    if not 0 <= prompt < len(mask):
        raise KrsError(f"there is no prompt {prompt}: this result has {len(mask)}, from 0 on")
    places = plan.places or (None,)
    if position not in places:
        there = f"give one from {places[0]} to {places[-1]}" if plan.places else "positions are no axis, leave it out"
        raise KrsError(f"position={position!r} is none of this result's: {there}")
    columns = [i for i in chosen_columns(plan, setting) if plan.columns[i].position == position]
    if len(columns) != 1:
        names = ", ".join(plan.settings[i // len(places)].name for i in columns)
        raise KrsError(f"one table is of one setting: name it with setting=, one of {names}")
    kept, there = scores.measured(measure), mask[prompt]
    values = plan.grid(kept.restored)
    found = values[columns[0] // len(places), :, places.index(position), prompt][:, there].T
    if prompt not in scores.having(position):
        found = np.full_like(found, np.nan)
    if recovery:
        start, end = (side[prompt, there][:, None] for side in (kept.recipient, kept.donor))
        found = np.divide(found - start, end - start, out=np.full_like(found, np.nan), where=end != start)
    texts = _scored_texts(scores, token_ids, pieces, prompt)
    index: Any = pd.MultiIndex.from_arrays([range(len(found)), texts], names=["token", "text"])
    return pd.DataFrame(found, index=index, columns=pd.Index([w.name for w in plan.windows], name="layer"))


def _scored_texts(
    scores: Scores, token_ids: Sequence[tuple[Ids, Ids]], pieces: Sequence[Sequence[str]], prompt: int
) -> list[Any]:
    """The answer's tokens that the scored logits predict; empty texts where that is not known."""
    n = int(scores.losses.mask[prompt].sum())
    if scores.scoring != "next-token" or not token_ids:
        return [""] * n
    ids, answer = token_ids[prompt]
    return list(pieces[prompt][len(ids) :][:n] if pieces else answer[:n])


_SPECIAL = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}


def escaped(text: str) -> str:
    r"""A text as LaTeX has it.

    >>> print(escaped("npo_kl 50%"))
    npo\_kl 50\%
    """
    return "".join(_SPECIAL.get(c, f"\\{c}" if c in "&%$#_{}" else c) for c in text)


def captioned(caption: str, given: str | None) -> str | None:
    """The caption that was given, in LaTeX, or else that text; `None` for `""`, which wants none."""
    return escaped(caption) if given is None else given or None


def to_latex(
    plan: Plan,
    table: DataFrame,
    digits: int,
    caption: str | None,
    label: str | None,
    spread: DataFrame | None = None,
    setting: Named | None = None,
) -> str:
    """A table of windows by settings, with a standard deviation beside each number if there is one.

    >>> import pandas as pd
    >>> plan = Plan.make("mlp_coef", windows=1, n_layers=1)
    >>> print(to_latex(plan, pd.DataFrame({"mlp_coef": [0.5]}, index=pd.Index([0], name="layer")), 2, None, None))
    \\begin{tabular}{lr}
    \\toprule
    Layer & MLP coefficients \\\\
    \\midrule
    0 & 0.50 \\\\
    \\bottomrule
    \\end{tabular}
    <BLANKLINE>
    """
    import pandas as pd

    chosen = chosen_columns(plan, setting)
    table, spread = table.iloc[:, chosen], None if spread is None else spread.iloc[:, chosen]
    values = table.to_numpy(dtype=float)
    spreads = np.full(values.shape, None) if spread is None else spread.to_numpy(dtype=float)
    cells = [[_cell(v, sd, digits) for v, sd in zip(*row, strict=True)] for row in zip(values, spreads, strict=True)]
    shown = pd.DataFrame(cells, index=list(map(str, table.index)))
    heads = [[plan.columns[i].label for i in chosen]]
    names = [str(n) for n in table.columns.names[1:]]
    heads += [[str(v) for v in table.columns.get_level_values(n)] for n in names]
    shown.columns = pd.MultiIndex.from_arrays(heads) if len(heads) > 1 else pd.Index(heads[0])
    styled = shown.style.format_index(escape="latex", axis="columns").format_index(escape="latex", axis="index")
    columns = "l" + "r" * table.shape[1]
    written = styled.to_latex(hrules=True, column_format=columns, caption=caption, label=label, multicol_align="c")
    first, rest = written.split("\\toprule\n", 1)
    corner = ["", *names[:-1], f"Layer / {names[-1]}"] if names else ["Layer"]
    lines = rest.split("\n")
    for i, name in enumerate(corner):
        lines[i] = f"{name} {lines[i].lstrip()}".lstrip() if lines[i].lstrip().startswith("&") else lines[i]
    return first + "\\toprule\n" + "\n".join(lines)


def _cell(value: float, spread: float | None, digits: int) -> str:
    if np.isnan(value):
        return "--"
    shown = f"{value:z.{digits}f}"  # what rounds to zero has no sign
    if spread is None:
        return shown.replace("-", "$-$")
    return f"${shown}$" if np.isnan(spread) else f"${shown} \\pm {spread:.{digits}f}$"


def to_xarray(scores: Scores, provenance: Mapping[str, Any]) -> Dataset:
    """See `SweepResult.to_xarray`."""
    require("xarray", "xarray", "to_xarray()")
    import xarray

    plan, mask = scores.plan, scores.losses.mask
    places = plan.places or (None,)
    dims = ("setting", "window", "position", "prompt", "token")
    absent = ~np.array([np.isin(np.arange(len(mask)), scores.having(p)) for p in places])
    data: dict[str, Any] = {"scored": (dims[3:], mask)}
    for measure in scores.measures:
        kept = scores.losses.of(measure)
        values = np.where(absent[:, :, None] | ~mask, np.nan, plan.grid(kept.restored))
        data[measure] = (dims, values) if plan.places else ((*dims[:2], *dims[3:]), values[:, :, 0])
        data[f"{measure}_recipient"] = (dims[3:], np.where(mask, kept.recipient, np.nan))
        data[f"{measure}_donor"] = (dims[3:], np.where(mask, kept.donor, np.nan))
    attributes = {
        "direction": scores.direction,
        "scoring": scores.scoring,
        "provenance": json.dumps(provenance),
    }
    return xarray.Dataset(data, _coordinates(plan), attributes)


def mean_to_xarray(plan: Plan, recoveries: Mapping[str, np.ndarray], names: Sequence[str], direction: str) -> Dataset:
    """See `MeanResult.to_xarray`; `recoveries` are `[member, window, column]`, by measure."""
    require("xarray", "xarray", "to_xarray()")
    import xarray

    dims = ("member", "setting", "window", "position")
    data: dict[str, Any] = {}
    for measure, values in recoveries.items():
        found = values.reshape(len(names), len(plan.windows), len(plan.settings), -1).transpose(0, 2, 1, 3)
        data[f"{measure}_recovery"] = (dims, found) if plan.places else (dims[:3], found[..., 0])
    return xarray.Dataset(data, {"member": list(names), **_coordinates(plan)}, {"direction": direction})


def _coordinates(plan: Plan) -> dict[str, Any]:
    coords: dict[str, Any] = {
        "setting": [s.name for s in plan.settings],
        "window": [w.name for w in plan.windows],
        "first_layer": ("window", [w.first for w in plan.windows]),
        "last_layer": ("window", [w.last for w in plan.windows]),
    }
    if plan.places:
        coords["position"] = list(plan.places)
    if plan.part_name is not None:
        per = plan.columns[:: max(1, len(plan.places))]
        coords["point"] = ("setting", [c.setting for c in per])
        coords[plan.part_name] = ("setting", [np.nan if c.part is None else c.part for c in per])
    return coords
