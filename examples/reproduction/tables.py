"""Tables of docs/reproduction.md, from what `krs study export` wrote: python tables.py results/fig1.json"""

import sys

import numpy as np
import pandas as pd

from krs.instruments.reading import interval
from krs.study import Exported, load_exported

LABELS = {
    "mlp_coef": "coefficients",
    "attn_out": "attention",
    "mlp_coef+attn_out": "both",
    "value_vectors": "value vectors",
    "keys": "keys",
    "attn_weights": "attention's weights",
}


def spread(values: pd.Series) -> str:
    """A mean with its 95 % interval by bootstrap over cells."""
    kept = values.dropna().to_numpy(dtype=float)
    if len(kept) < 2:
        return f"{kept.mean():.2f}" if len(kept) else ""
    low, high = interval(kept)
    return f"{kept.mean():.2f} [{low:.2f}, {high:.2f}]"


def peaks(study: Exported) -> pd.DataFrame:
    """The highest score of any window, a row a method and strength: mean over concepts and seeds."""
    table = study.table("krs")
    best = table.groupby(["method", "strength", "cell", "setting"], sort=False).krs.max().reset_index()
    rows = best.groupby(["method", "strength", "setting"], sort=False).krs.apply(spread).unstack("setting")
    counts = best.groupby(["method", "strength"], sort=False).cell.nunique()
    return rows[[s for s in LABELS if s in rows]].rename(columns=LABELS).assign(cells=counts)


PAPER = ("grad_diff", "dpo_idk", "dpo_retain_text")


def claims(study: Exported) -> pd.DataFrame:
    """What the paper says of Fig. 1, in numbers of these curves: for the paper's methods, and for each method here.

    Intervals are over concepts, of each the mean of its cells. The paper's models have 32 layers: a layer is taken at
    the same share of the depth.
    """
    table = study.table("krs")
    depth = table.last_layer.max() + 1
    at = {layer: round(layer * (depth - 1) / 31) for layer in (15, 20, 27)}
    curves = table.pivot_table(index=["method", "concept", "cell"], columns=["setting", "window"], values="krs")

    def over_concepts(cells: pd.Series) -> str:
        return spread(cells.groupby("concept").mean())

    def row(cells: pd.DataFrame) -> dict[str, str]:
        value, attention, mlp, both = (cells[s] for s in ("value_vectors", "attn_out", "mlp_coef", "mlp_coef+attn_out"))
        return {
            "value vectors: largest": over_concepts(value.max(axis=1)),
            "value vectors: cells below 0.001": f"{(value.max(axis=1) < 0.001).mean():.0%}",
            f"attention: least from layer {at[15]} on": over_concepts(attention.loc[:, at[15] :].min(axis=1)),
            f"attention: least from layer {at[27]} on": over_concepts(attention.loc[:, at[27] :].min(axis=1)),
            f"coefficients: layer {at[20]}": over_concepts(mlp[at[20]]),
            "coefficients: last three layers": over_concepts(mlp[depth - 1]),
            "both: peak": over_concepts(both.max(axis=1)),
        }

    groups = {"the paper's methods": curves.loc[[m for m in PAPER if m in curves.index.get_level_values(0)]]}
    groups |= {m: curves.loc[[m]] for m in curves.index.get_level_values(0).unique()}
    return pd.DataFrame({name: row(cells) for name, cells in groups.items() if len(cells)}).rename_axis("claim")


def changes(study: Exported) -> pd.DataFrame:
    """How far weights have moved, relative to their size: of each component the largest layer, a row a method."""
    largest = study.table("drift").groupby(["method", "component", "cell"], sort=False).relative_change.max()
    return largest.groupby(["method", "component"], sort=False).max().unstack("component").map("{:.1e}".format)


def behaviour(study: Exported) -> pd.DataFrame:
    """BLEU against the vanilla answers, what the forgotten answers cost, and how much of them is refused."""
    table = study.table("answers")
    keys, numbers = ["method", "strength"], ["bleu", "nll", "refusals"]
    cells = table.groupby([*keys, "cell", "side"], sort=False)[numbers].mean().unstack("side")
    cells.columns = [f"{number} {side}" for number, side in cells.columns]
    groups = cells.groupby(keys, sort=False)
    found = {
        "target BLEU": groups["bleu target"].apply(spread),
        "unrelated BLEU": groups["bleu unrelated"].apply(spread),
        "NLL of target": groups["nll target"].apply(spread),
        "refused": groups["refusals target"].mean().map("{:.0%}".format),
    }
    return pd.DataFrame(found)


def readings(study: Exported) -> pd.DataFrame:
    """Means of what instruments read, and the verdicts."""
    table = study.table("dissect")
    if not len(table):
        return table
    rows = table.groupby(["method", "instrument"], sort=False)["mean"].apply(spread).unstack("instrument")
    same = table.groupby("instrument", sort=False)["null: same"].mean()
    words = table.drop_duplicates("cell").groupby("method", sort=False).verdict.value_counts()
    told = {m: ", ".join(f"{word} {n}" for word, n in words[m].items()) for m in rows.index}
    found = rows[list(dict.fromkeys(table.instrument))].assign(verdicts=pd.Series(told))
    found.loc["vanilla against itself"] = [
        f"{same[c]:.2f}" if c in same and not np.isnan(same[c]) else "" for c in found.columns
    ]
    return found


def markdown(table: pd.DataFrame) -> str:
    """A table as Markdown has it."""
    flat = table.reset_index()
    rows = [list(flat.columns), ["---"] * flat.shape[1], *flat.astype(str).to_numpy().tolist()]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows)


for file in sys.argv[1:]:
    read = load_exported(file)
    print(f"\n{file}: {read!r}")
    made = [behaviour(read), readings(read)]
    if len(curves := read.table("krs")):
        made.insert(0, peaks(read))
        if {"mlp_coef", "attn_out", "mlp_coef+attn_out", "value_vectors"} <= set(curves.setting):
            made.insert(0, claims(read))
    if len(read.table("drift")):
        made.append(changes(read))
    for one in made:
        if len(one):
            print(f"\n{markdown(one)}")
