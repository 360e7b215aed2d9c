"""Estimates beside exact scores: how near, and how much faster, measured side by side in one run.

    make demo                                                       # the unlearned model
    python benchmarks/estimate.py [--unlearned out/demo/unlearned] [--rounds 3] [--prompts 10]

30 single layers x the paper's four settings by `engine="wavefront"` and `engine="estimate"`, taking turns, of the same
answers. The map of layers x positions: `engine="estimate"` does all of it, the exact engine some positions, scaled up.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings

from common import machine, questions

import krs
from krs.data import as_chat


def _seconds(engine: str, options: dict) -> tuple[float, krs.SweepResult]:
    """Of the engine alone: checks of the models and their identity cost both ways the same."""
    result = krs.sweep(engine=engine, progress=False, **options)
    return sum(part["seconds"] for part in result.provenance["parts"]), result


def _compare(options: dict, rounds: int) -> None:
    taken: dict[str, list[float]] = {"wavefront": [], "estimate": []}
    found = {}
    for _ in range(rounds):
        for engine, times in taken.items():
            seconds, found[engine] = _seconds(engine, options)
            times.append(seconds)
    ratios = [a / b for a, b in zip(taken["wavefront"], taken["estimate"], strict=True)]
    spread = f"{min(ratios):.1f}-{max(ratios):.1f}"
    print(f"exact {statistics.median(taken['wavefront']):.1f} s, estimate {statistics.median(taken['estimate']):.1f} s")
    print(f"exact / estimate: {statistics.median(ratios):.1f} ({spread})\n")
    print("| setting | Spearman | mean error | largest error |\n| --- | --- | --- | --- |")
    exact, rough = found["wavefront"].krs, found["estimate"].krs
    for name in exact:
        apart = (exact[name] - rough[name]).abs()
        rho = exact[name].rank().corr(rough[name].rank())
        print(f"| {name} | {rho:.3f} | {apart.mean():.3f} | {apart.max():.3f} |")


def _map(options: dict, some: int) -> None:
    """Layers x prompt positions of attention outputs, a sweep a position; of the estimate one sweep does for all."""
    positions = min(map(len, options["prompts"]))
    options = options | {"settings": "attn_out"}
    start = time.perf_counter()
    for p in range(0, positions, max(1, positions // some)):
        _seconds("wavefront", options | {"positions": [p]})
    each = (time.perf_counter() - start) / len(range(0, positions, max(1, positions // some)))
    start = time.perf_counter()
    _seconds("estimate", options)
    once = time.perf_counter() - start
    print(
        f"\nlayers x {positions} positions: exact {each * positions:.0f} s (scaled up from {some} positions),", end=" "
    )
    print(f"one estimate's passes {once:.1f} s: {each * positions / once:.0f} times")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--unlearned", default="out/demo/unlearned")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=10)
    parser.add_argument("--map", type=int, default=3, help="positions that the exact engine does of the map; 0: no map")
    chosen = parser.parse_args()
    warnings.simplefilter("ignore")
    print(machine())
    vanilla, tokenizer = krs.load("smollm2")
    unlearned, _ = krs.load(chosen.unlearned)
    asked = as_chat(questions(chosen.prompts))
    layers = krs.windows.of([[i] for i in range(vanilla.config.num_hidden_layers)])
    first = krs.sweep(vanilla, unlearned, asked, tokenizer=tokenizer, engine="estimate", windows=layers, progress=False)
    prompts, answers = zip(*first.token_ids, strict=True)
    options = {"vanilla": vanilla, "unlearned": unlearned, "tokenizer": tokenizer, "windows": layers}
    options |= {"prompts": list(prompts), "answers": list(answers)}
    _compare(options, chosen.rounds)
    if chosen.map:
        _map(options, chosen.map)


if __name__ == "__main__":
    main()
