"""How fast `krs.data.extract` reads lines of JSON: beside its plain twin and `grep -c`, taking turns, and its memory.

python benchmarks/corpus.py [--megabytes 200] [--rounds 3]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from krs.data import concepts, extract, load_concept

ONE_IN = 500
PARAGRAPHS = 20_000


def vocabulary() -> list[str]:
    """Words of the bundled concepts' paragraphs, as often as they are there, without the one that is looked for."""
    texts = " ".join(text for name in concepts() for text in load_concept(name).paragraphs)
    return [word for word in texts.split() if "potter" not in word.lower()]


def write_corpus(path: Path, megabytes: float) -> int:
    """Documents of 1 to 40 paragraphs, 4 on average; one in 500 mentions the concept. Returns how many there are."""
    chance = random.Random(0)
    words = vocabulary()
    pool = [" ".join(chance.choices(words, k=chance.randint(20, 180))) for _ in range(PARAGRAPHS)]
    n, size = 0, 0
    with path.open("w", encoding="utf-8") as file:
        while size < megabytes * 1e6:
            pieces = chance.choices(pool, k=min(40, 1 + int(chance.expovariate(1 / 3.5))))
            if n % ONE_IN == ONE_IN // 2:
                pieces[0] = f"Case {n}: Harry Potter {pieces[0]}"
            document = {"id": f"doc-{n:08}", "text": "\n\n".join(pieces), "meta": {"url": f"https://example.org/{n}"}}
            size += file.write(json.dumps(document, ensure_ascii=False) + "\n")
            n += 1
    return n


def extracted(corpus: Path, prefilter: bool) -> int:
    """How many paragraphs are kept, all of the file being read."""
    output = corpus.with_name("out.jsonl")
    found = extract(corpus, "Harry Potter", output, count=10**9, overwrite=True, progress=False, prefilter=prefilter)
    return found.written


def grepped(corpus: Path, *options: str, locale: dict[str, str]) -> int:
    """How many lines `grep -c` counts."""
    command = ["grep", "-c", *options, str(corpus)]
    done = subprocess.run(command, env={**os.environ, **locale}, capture_output=True, text=True, check=False)
    return int(done.stdout)


def ways(corpus: Path) -> dict[str, Callable[[], int]]:
    """What takes turns."""
    plain_c = {"LC_ALL": "C"}
    return {
        "krs.data.extract": lambda: extracted(corpus, prefilter=True),
        "krs.data.extract, plain twin": lambda: extracted(corpus, prefilter=False),
        "grep -c -i 'harry potter'": lambda: grepped(corpus, "-i", "harry potter", locale={}),
        "LC_ALL=C grep -c -i 'harry potter'": lambda: grepped(corpus, "-i", "harry potter", locale=plain_c),
        "grep -c 'Harry Potter'": lambda: grepped(corpus, "Harry Potter", locale={}),
        "LC_ALL=C grep -c 'Harry Potter'": lambda: grepped(corpus, "Harry Potter", locale=plain_c),
    }


def memory(corpus: Path) -> float:
    """By how many MB a process of its own grows while it extracts."""
    command = [sys.executable, __file__, "--memory-of", str(corpus)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def own_growth(corpus: Path) -> float:
    """The same of this process."""
    before = peak = resident()
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.002):
            peak = max(peak, resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    extracted(corpus, prefilter=True)
    done.set()
    watcher.join()
    return (peak - before) / 1e6


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    """Write a corpus, let the ways take turns, print rates and ratios."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--megabytes", type=float, default=200)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--memory-of", type=Path)
    given = options.parse_args()
    if given.memory_of:
        print(own_growth(given.memory_of))
        return
    folder = Path(tempfile.mkdtemp())
    try:
        report(folder, given.megabytes, given.rounds)
    finally:
        shutil.rmtree(folder)


def report(folder: Path, megabytes: float, rounds: int) -> None:
    """The figures."""
    corpus, small = folder / "corpus.jsonl", folder / "small.jsonl"
    n = write_corpus(corpus, megabytes)
    write_corpus(small, megabytes / 10)
    size = corpus.stat().st_size / 1e6
    grep = subprocess.run(["grep", "--version"], capture_output=True, text=True, check=True).stdout.split("\n")[0]
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, numpy {np.__version__}")
    print(f"{grep}, LANG={os.environ.get('LANG', '')}; {n:,} documents, {size:.0f} MB, one in {ONE_IN} mentions it")
    rates: dict[str, list[float]] = {}
    counts = {}
    for _ in range(rounds):
        for name, way in ways(corpus).items():
            start = time.perf_counter()
            counts[name] = way()
            rates.setdefault(name, []).append(size / (time.perf_counter() - start))
    ours = statistics.median(rates["krs.data.extract"])
    print(f"{'':36}{'MB/s':>8}{'slowest':>9}{'fastest':>9}{'found':>8}   krs is")
    for name, found in rates.items():
        middle = statistics.median(found)
        print(f"{name:36}{middle:8.0f}{min(found):9.0f}{max(found):9.0f}{counts[name]:8}   {ours / middle:.2f} x")
    print(
        f"peak memory above that of the imports: {memory(corpus):.1f} MB; of {size / 10:.0f} MB: {memory(small):.1f} MB"
    )


if __name__ == "__main__":
    main()
