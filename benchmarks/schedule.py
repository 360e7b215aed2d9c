"""How long a study takes on so many GPUs: its cells, shared out as `krs study --runner ray` shares them out.

Rates are given, in seconds a step of a cell; nothing is run, and no model is loaded.

    python benchmarks/schedule.py --step prepare=9 --step unlearn=62 --step sweep=39 --step answers=40 --step drift=1
    python benchmarks/schedule.py --study out/study            # rates of the finished steps of a study's directory
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import json
from collections import defaultdict
from pathlib import Path

SHARED = "prepare"
"""The step that all cells of a model and a concept have in common: who comes second waits for it."""


def simulated(
    sizes: tuple[int, int, int, int], rates: dict[str, float], slots: int, startup: float
) -> dict[str, float]:
    """Cells in the grid's order, each to the worker that is free first.

    Args:
        sizes: numbers of models, concepts, methods and strengths.
        rates: seconds a step.
        slots: cells at a time.
        startup: seconds before a cell's first step: a process, its imports.

    Returns seconds from start to end (`wall`), of work in all (`work`), and of waiting for another cell (`waited`).
    """
    free = [0.0] * slots
    ready: dict[tuple[int, int], float] = {}
    work = waited = 0.0
    own = sum(seconds for step, seconds in rates.items() if step != SHARED)
    for model, concept, _, _ in itertools.product(*map(range, sizes)):
        now = heapq.heappop(free) + startup
        first = (model, concept) not in ready
        if first:
            ready[model, concept] = now + rates.get(SHARED, 0.0)
        work += own + startup + (rates.get(SHARED, 0.0) if first else 0.0)
        begins = max(now, ready[model, concept])
        waited += 0.0 if first else begins - now
        heapq.heappush(free, begins + own)
    return {"wall": max(free), "work": work, "waited": waited}


def measured(folder: Path) -> dict[str, float]:
    """The mean seconds of the finished steps of a study, by step."""
    found = defaultdict(list)
    for manifest in folder.glob("steps/*/*/manifest.json"):
        told = json.loads(manifest.read_text(encoding="utf-8"))
        found[told["step"]].append(told["seconds"])
    return {step: sum(seconds) / len(seconds) for step, seconds in found.items()}


def table(
    sizes: tuple[int, int, int, int], rates: dict[str, float], gpus: list[int], each: float, startup: float
) -> str:
    """A row a number of GPUs, each cell on `each` of one."""
    cells = sizes[0] * sizes[1] * sizes[2] * sizes[3]
    lines = [
        f"{cells} cells; seconds a step: " + ", ".join(f"{step} {seconds:g}" for step, seconds in rates.items()),
        "",
        "| GPUs | cells at a time | hours | times as fast | busy | of it waiting for a shared step |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    alone = None
    for n in gpus:
        slots = max(1, int(n / each))
        found = simulated(sizes, rates, slots, startup)
        alone = alone or found["wall"]
        busy = (found["work"] + found["waited"]) / (slots * found["wall"])
        share = found["waited"] / (found["work"] + found["waited"])
        lines.append(
            f"| {n} | {slots} | {found['wall'] / 3600:.2f} | {alone / found['wall']:.1f} | {busy:.0%} | {share:.1%} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Print the table of what the command line asks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, n in (("models", 2), ("concepts", 10), ("methods", 10), ("strengths", 3)):
        parser.add_argument(f"--{name}", type=int, default=n)
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--each", type=float, default=1, help="GPUs a cell, such as 0.25")
    parser.add_argument("--startup", type=float, default=15, help="seconds before a cell's first step")
    parser.add_argument("--step", action="append", default=[], metavar="NAME=SECONDS")
    parser.add_argument("--study", type=Path, help="take the rates of what is finished there")
    asked = parser.parse_args()
    rates = {} if asked.study is None else measured(asked.study)
    rates |= {name: float(seconds) for name, _, seconds in (given.partition("=") for given in asked.step)}
    if not rates:
        parser.error("give rates: --step NAME=SECONDS, or --study DIR")
    sizes = asked.models, asked.concepts, asked.methods, asked.strengths
    print(table(sizes, rates, asked.gpus, asked.each, asked.startup))


if __name__ == "__main__":
    main()
