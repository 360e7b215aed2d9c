"""What it costs to know a model by every byte, beside the demo's sweep.

    python benchmarks/identity.py [--rounds 5] [--sweep-seconds 39] [--cold]

The identity of the bundled model, loaded and from its files, twice, for a pair; then the demo's sweep (ten questions,
four settings x 30 windows), unless its processor seconds are given. From the throughput in memory and from the files
follows what a 7B pair in bf16 would take; that is worked out and marked so. Processor time, for others may use the
machine; `--cold` drops the files from the page cache first, as far as the system lets a user, and adds seconds by the
clock.
"""

from __future__ import annotations

import argparse
import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import machine, moved, questions

import krs
from krs.data import as_chat
from krs.models.bundled import bundled
from krs.models.identity import differing, file_identity, identity

SEVEN_B = 2 * 6.74e9 * 2
"""Bytes of two models of Llama-2-7B's shape in bf16."""


def _taken(call: Callable[[], Any], rounds: int) -> tuple[float, float, Any]:
    """Processor seconds and seconds by the clock, each the smallest of some rounds, and what came of it."""
    times, found = [], None
    for _ in range(rounds):
        start = time.process_time(), time.perf_counter()
        found = call()
        times.append((time.process_time() - start[0], time.perf_counter() - start[1]))
    cpu, wall = (min(column) for column in zip(*times, strict=True))
    return cpu, wall, found


def _forget(folder: Path) -> None:
    """Have the system drop the files from its cache; what other processes have mapped stays."""
    for file in folder.glob("*.safetensors"):
        handle = os.open(file, os.O_RDONLY)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def _row(what: str, size: float, cpu: float, wall: float | str, sweep: float | None) -> str:
    share = "" if sweep is None else f"{cpu / sweep:.2%}"
    clock = wall if isinstance(wall, str) else f"{wall:.3f}"
    return f"| {what} | {size / 1e9:.2f} | {cpu:.3f} | {clock} | {size / cpu / 1e9:.1f} | {share} |"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--sweep-seconds", type=float, help="processor seconds of the demo's sweep; measured if left out"
    )
    parser.add_argument("--cold", action="store_true", help="the files also from the disk rather than from the cache")
    chosen = parser.parse_args()
    warnings.simplefilter("ignore")
    print(machine())
    vanilla, tokenizer = krs.load("smollm2")
    unlearned, folder = moved(vanilla), bundled()
    cpu, wall, pair = _taken(lambda: (identity(vanilla), identity(unlearned)), chosen.rounds)
    size = sum(one["bytes"] for one in pair)
    rows = [("two loaded models", size, cpu, wall)]
    file_cpu, file_wall, files = _taken(lambda: (file_identity(folder), file_identity(folder)), chosen.rounds)
    assert not differing(files[0], pair[0]), "files and loaded model disagree"
    rows.append(("the files of one, twice", 2 * files[0]["bytes"], file_cpu, file_wall))
    if chosen.cold:
        _forget(folder)
        once_cpu, once_wall, one = _taken(lambda: file_identity(folder), 1)
        rows.append(("the files once, cold", one["bytes"], once_cpu, once_wall))
    sweep = chosen.sweep_seconds
    if sweep is None:
        asked = as_chat(questions(10))
        start = time.process_time()
        krs.sweep(vanilla, unlearned, asked, tokenizer=tokenizer, progress=False)
        sweep = time.process_time() - start
    given = "measured here" if chosen.sweep_seconds is None else "given"
    print(f"the demo's sweep, its answers included: {sweep:.1f} processor seconds ({given})\n")
    print("| | GB | processor s | s | GB/s | of the sweep |\n| --- | --- | --- | --- | --- | --- |")
    for row in rows:
        print(_row(*row, sweep))
    for what, rate in (("in memory", size / cpu), ("from files in the cache", rows[1][1] / file_cpu)):
        print(_row(f"a 7B pair in bf16 {what}: worked out from the rate", SEVEN_B, SEVEN_B / rate, "", None))
    print(f"\nunder 5 % of the demo's sweep: {'yes' if max(cpu, file_cpu) < 0.05 * sweep else 'NO'}")


if __name__ == "__main__":
    main()
