"""What a study's runner costs: cells that only wait, a study that is listed and gone on with.

python benchmarks/cells.py [--cells 100] [--seconds 1] [--runners local ray] [--many 10000]
"""

from __future__ import annotations

import argparse
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pausing  # noqa: F401 - the step registers itself

from krs import study
from krs.study.run import status


def _spec(cells: int, seconds: float) -> study.Spec:
    one = {"models": ["smollm2"], "concepts": ["paris"], "methods": ["ga"], "seeds": list(range(cells))}
    return study.read_spec(one | {"steps": {"pausing": {"seconds": seconds}}})


def _timed(what: str, work: Callable[[], object]) -> float:
    begun, worked = time.monotonic(), time.process_time()
    work()
    seconds = time.monotonic() - begun
    print(f"{what}: {seconds:.2f} s, of which {time.process_time() - worked:.2f} s of this process's work")
    return seconds


def _overhead(runner: str, cells: int, seconds: float, folder: Path) -> None:
    """One cell at a time, so that the rest is the runner's own; Ray's start, and its worker's imports, are in it."""
    who = study.Ray(cpus=1) if runner == "ray" else runner
    if runner == "ray":
        import ray

        ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    spec = _spec(cells, seconds)
    short = _spec(1, 0.0)
    _timed(f"{runner}, the first cell", lambda: study.run(short, folder / "first", who, progress=False))
    taken = _timed(f"{runner}, {cells} cells", lambda: study.run(spec, folder / "out", who, progress=False))
    print(f"{runner}: {taken / (cells * seconds) - 1:.2%} more than the cells' own {cells * seconds:g} s")
    _timed(f"{runner}, once more", lambda: study.run(spec, folder / "out", who, progress=False))


def _many(cells: int, folder: Path) -> None:
    spec = _spec(cells, 0.0)
    _timed(f"{cells:,} cells that do nothing", lambda: study.run(spec, folder, progress=False))
    _timed("gone on with, all done", lambda: study.run(spec, folder, progress=False))
    _timed("status", lambda: sum(1 for _ in status(folder)))
    tracemalloc.start()
    study.run(spec, folder, progress=False)
    print(f"memory while going on: {tracemalloc.get_traced_memory()[1] / 1e6:.1f} MB at most")


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--runners", nargs="*", default=["local", "ray"])
    parser.add_argument("--many", type=int, default=10_000, help="0 for none")
    asked = parser.parse_args()
    for runner in asked.runners:
        with tempfile.TemporaryDirectory() as folder:
            _overhead(runner, asked.cells, asked.seconds, Path(folder))
    if asked.many:
        with tempfile.TemporaryDirectory() as folder:
            _many(asked.many, Path(folder) / "many")


if __name__ == "__main__":
    main()
