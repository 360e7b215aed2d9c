"""A sweep of a pair that stays on disk: peak memory and bytes read, against the size of the two checkpoints.

    python benchmarks/offload.py [--pair smollm2|1b] [--dir DIR]

`1b` writes two random checkpoints of Llama-3.2-1B's shape (bf16, 5 GB together) to DIR and sweeps them in a process of
its own, so that what is measured is the sweep's memory and nothing else's. Answers are given, for generating them would
read the vanilla model once a token.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SHAPE = {
    "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
    "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": True,
}  # fmt: skip


def write(folder: Path, pair: str) -> None:
    """Two checkpoints; each tensor of the second is a little off the first's."""
    import torch
    from common import moved, random_pair

    import krs

    if pair == "smollm2":
        vanilla, _ = krs.load("smollm2")
        unlearned = moved(vanilla)
    else:
        vanilla, unlearned = random_pair(SHAPE, "cpu", torch.bfloat16)
    vanilla.save_pretrained(folder / "vanilla", max_shard_size="1GB")
    unlearned.save_pretrained(folder / "unlearned", max_shard_size="1GB")


def measure(folder: Path) -> None:
    """One sweep from disk; prints its figures as JSON."""
    import resource

    import torch
    from accelerate.utils.offload import OffloadedWeightsLoader
    from common import memory_above

    import krs

    read = 0
    real = OffloadedWeightsLoader.__getitem__

    def counted(self: OffloadedWeightsLoader, key: str) -> torch.Tensor:
        nonlocal read
        value = real(self, key)
        read += value.nbytes
        return value

    OffloadedWeightsLoader.__getitem__ = counted
    shared = list(range(100, 112))
    prompts = [[*shared, *range(200 + 9 * i, 208 + 9 * i)] for i in range(4)]
    answers = [list(range(300 + 11 * i, 310 + 11 * i)) for i in range(4)]
    taken: list[float] = []
    start = time.perf_counter()
    with memory_above(taken):
        result = krs.sweep(
            str(folder / "vanilla"),
            str(folder / "unlearned"),
            prompts,
            answers=answers,
            offload="disk",
            memory="500MB",
            progress=False,
        )
    size = sum(f.stat().st_size for f in folder.glob("*/*.safetensors"))
    found = {
        "engine": result.provenance["engine"],
        "restorations": len(result.plan),
        "seconds": round(time.perf_counter() - start, 1),
        "checkpoints_GB": round(size / 1e9, 2),
        "peak_above_start_GB": round(taken[0] / 1e3, 2),
        "peak_of_checkpoints": round(taken[0] * 1e6 / size, 3),
        "peak_with_interpreter_of_checkpoints": round(
            resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / size, 3
        ),
        "read_of_checkpoints": round(read / size, 3),
    }
    print(json.dumps(found, indent=2))


def main() -> None:
    """Write, and measure in a fresh process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pair", choices=("smollm2", "1b"), default="smollm2")
    parser.add_argument("--dir", type=Path)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.measure:
        measure(chosen.measure)
        return
    if chosen.write:
        write(chosen.write, chosen.pair)
        return
    with tempfile.TemporaryDirectory(dir=chosen.dir) as scratch:
        for step in (["--write", scratch, "--pair", chosen.pair], ["--measure", scratch]):
            subprocess.run([sys.executable, __file__, *step], check=True)


if __name__ == "__main__":
    main()
