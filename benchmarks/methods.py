"""Every unlearning method from the command line on one concept: the table of docs/methods.md, and Fig. 2.

    krs prepare solar_system --model smollm2 --chat -o out/solar
    python benchmarks/methods.py out/solar --corpus out/text.jsonl

It runs `krs unlearn`, `krs answers`, `krs drift` and `krs sweep` as a shell would, prints each command with the time
it took, and skips what an earlier run has finished. With --points it also trains every method for half and for twice
as many steps (of MEMIT: with four times and a quarter of the weight on the covariance): the three points of Fig. 2.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from pathlib import Path

import pandas as pd

import krs
from krs import unlearn
from krs.cli import app
from krs.plots import save_figure
from krs.unlearn.methods import method

COMPONENTS = ["keys", "value_vectors", "attention_in", "attention_out", "norms", "embedding"]


def main() -> None:
    """Run every method, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prepared", type=Path, help="what `krs prepare` wrote")
    parser.add_argument("--corpus", type=Path, help="text for MEMIT; without it MEMIT is left out")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--methods", nargs="*", default=None)
    parser.add_argument("--points", action="store_true", help="three points a method, without sweeps for the new two")
    parser.add_argument("-o", "--output", type=Path, help="default: beside what was prepared")
    given = parser.parse_args()
    out = given.output or given.prepared / "methods"
    names = given.methods or [m for m in unlearn.methods() if given.corpus or not m.startswith("memit")]
    for name in names:
        for label, settings in points(name, given.points):
            one(name, label, settings, given, out)
    report(out)


def points(name: str, three: bool) -> list[tuple[str, list[str]]]:
    """The default, and on request a gentler and a stronger setting."""
    if not three:
        return [("default", [])]
    config = method(name).config_class()
    if name.startswith("memit"):
        weight = config.covariance_weight
        return [
            ("gentle", [f"covariance_weight={4 * weight}"]),
            ("default", []),
            ("strong", [f"covariance_weight={weight / 4}"]),
        ]
    return [("gentle", [f"steps={config.steps // 2}"]), ("default", []), ("strong", [f"steps={config.steps * 2}"])]


def one(name: str, label: str, settings: list[str], given: argparse.Namespace, out: Path) -> None:
    """One model: made, asked, compared, swept."""
    folder = out / name / label
    model, files = folder / "model", given.prepared
    memit = name.startswith("memit")
    command = ["unlearn", name, "--model", given.model, "--chat", "-o", model]
    command += ["--forget", files / ("requests.jsonl" if memit else "forget.jsonl")]
    found = method(name)
    if getattr(found, "needs_retain", False) and not found.makes_retain:
        command += ["--retain", files / "retain.jsonl"]
    if memit:
        command += ["--corpus", given.corpus]
    for setting in settings:
        command += ["--set", setting]
    run(command, model / unlearn.REPORT)
    asked = ["answers", given.model, model, "--chat", "--target", files / "target.txt", "-o", folder]
    asked += ["--unrelated", files / "unrelated.txt"]
    if known := sorted(out.glob("*/*/answers.json")):
        asked += ["--reuse", known[0]]
    run(asked, folder / "answers.json")
    run(["drift", given.model, model, "-o", folder], folder / "drift.csv")
    if label == "default":
        run(
            ["sweep", given.model, model, "--prompts", files / "target.txt", "--chat", "-o", folder], folder / "krs.csv"
        )


def run(command: list[object], makes: Path) -> None:
    """A `krs` command, unless what it makes is there."""
    if makes.exists():
        return
    words = [str(word) for word in command] + (["--quiet"] if command[0] != "drift" else [])
    print(f"$ krs {shlex.join(words)}", flush=True)
    started = time.monotonic()
    app(words, standalone_mode=False)
    print(f"  [{time.monotonic() - started:.0f} s]", flush=True)


def report(out: Path) -> None:
    """The table, as Markdown, and Fig. 2."""
    behaviour, moved, recovered, figure = [], [], [], {}
    for file in sorted(out.glob("*/default/answers.json")):
        folder, name = file.parent, file.parents[1].name
        found = krs.metrics.load_answers(file)
        made = json.loads((folder / "model" / unlearn.REPORT).read_text(encoding="utf-8"))
        t = found.table
        behaviour.append(
            {
                "method": name,
                "target BLEU": t.bleu["target"],
                "unrelated BLEU": t.bleu["unrelated"],
                **{k: both(t[c]) for k, c in [("refusals", "refusals"), ("distinct-2", "distinct_2"), ("NLL", "nll")]},
                "seconds": round(made["seconds"]),
            }
        )
        drift = pd.read_csv(folder / "drift.csv")
        drift["changed"], drift["whole"] = (drift.relative_change * drift.norm) ** 2, drift.norm**2
        sums = drift.groupby("component")[["changed", "whole"]].sum()
        row = (sums.changed / sums.whole) ** 0.5
        moved.append({"method": name} | {c: f"{1e4 * row.get(c, float('nan')):.2f}" for c in COMPONENTS})
        recovered.append({"method": name} | peaks(krs.load_result(folder / "sweep.krs").krs))
        labels = ("gentle", "default", "strong")
        several = [out / name / label / "answers.json" for label in labels]
        figure[name] = [krs.metrics.load_answers(f) for f in several if f.exists()]
    first = next(iter(figure.values()))[0].table
    print(
        f"\nceiling: target {first.ceiling['target']:.1f}, unrelated {first.ceiling['unrelated']:.1f}; vanilla ", end=""
    )
    print(f"NLL {first.nll_vanilla['target']:.2f} and {first.nll_vanilla['unrelated']:.2f}, distinct-2 ", end="")
    print(f"{first.distinct_2_vanilla['target']:.2f} and {first.distinct_2_vanilla['unrelated']:.2f}\n")
    for title, rows in (
        ("behaviour", behaviour),
        ("weights moved, in 1e-4 of their norm", moved),
        ("peak KRS", recovered),
    ):
        print(f"{title}:\n{markdown(rows)}\n")
    save_figure(figure, out / "fig2.png")


def both(column: pd.Series) -> str:
    """A figure of the target and of the unrelated side."""
    return f"{column['target']:.2f}, {column['unrelated']:.2f}"


def peaks(table: pd.DataFrame) -> dict[str, str]:
    """The largest score of each setting, and the centre of its window."""
    return {name: f"{table[name].max():.2f} ({table[name].idxmax()})" for name in table}


def markdown(rows: list[dict[str, object]]) -> str:
    """A Markdown table."""
    head = list(rows[0])
    lines = [head, ["---"] * len(head)]
    lines += [[f"{v:.1f}" if isinstance(v, float) else str(v) for v in row.values()] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    sys.exit(main())
