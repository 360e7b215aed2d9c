"""How long a sweep takes, way by way, measured side by side in one run.

    make bench                     # or: python benchmarks/sweep.py [--rounds 3] [--prompts 10] [--form chat|text|both]
    python benchmarks/sweep.py --profile                            # where the wavefront's time goes
    python benchmarks/sweep.py --shape llama2-7b --device cuda --dtype bfloat16

Four settings x all windows of 5. The wavefront engine does all of it; the other ways run the whole model once a
restoration, so a few restorations of each are timed and scaled up. Each round times every way, one after the other;
ratios are taken within a round, and the median round is printed. A bare matrix product is timed all along: the floor
is the plan's unavoidable operations (see floor.py) at that rate.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
import warnings

import rivals
import torch
from common import Work, machine, memory_above, moved, plain, prompts_of, questions, random_pair, wavefront
from floor import Sampling

import krs
from krs import ATTN_OUT, MLP_COEF, windows
from krs.restore.plan import Plan

SHAPES = {
    "llama2-7b": {
        "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 32, "vocab_size": 32000,
    },
    "smollm2-135m": {
        "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
        "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True,
    },
}  # fmt: skip


def _sync() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _ways(work: Work, tokenizer: object, only_loop: bool) -> list:
    given = rivals.Padded(work.vanilla, work.unlearned, work.batch, work.answers)
    makers = [lambda: rivals.Loop(given), lambda: rivals.Notebook(given)]
    if not only_loop:
        makers += [lambda: rivals.NNsight(given, tokenizer), lambda: rivals.Pyvene(given), lambda: rivals.Lens(given)]
    found = []
    for make in makers:
        try:
            found.append(make())
        except ImportError as missing:
            print(f"(left out: {missing}; pip install 'krs[bench]')")
    return found


def _seconds(way: object, layers: tuple[int, ...]) -> tuple[float, float]:
    """Of one restoration, its score included; and the score."""
    _sync()
    start = time.perf_counter()
    score = way.given.score(way.logits(layers))
    return time.perf_counter() - start, score


def compare(work: Work, tokenizer: object, rounds: int, only_loop: bool) -> None:
    """Print the table."""
    padded = len(work.batch) * max(map(len, work.batch.tokens))
    real = sum(map(len, work.batch.tokens))
    print(f"{len(work.batch)} prompts, {padded} padded tokens, {real} real, {int(work.batch.mask.sum())} scored")
    n_layers = work.plan.n_layers
    starts = [round(i * (n_layers - 5) / 2) for i in range(3)]
    picked = [tuple(range(s, s + 5)) for s in starts]
    ways = _ways(work, tokenizer, only_loop)
    both = Plan.make(MLP_COEF + ATTN_OUT, windows.of(picked), n_layers=n_layers)
    for way in ways:
        _seconds(way, picked[0])  # whatever a library does once
    runs = len(work.plan) + 2
    ratios: dict[str, list[float]] = {}
    wave, over_floor, memory, apart = [], [], {}, []
    for _ in range(rounds):
        taken: list[float] = []
        with memory_above(taken):
            _sync()
            seconds, bare, _ = work.timed()
            _sync()
        memory.setdefault("wavefront", []).extend(taken)
        wave.append(seconds)
        over_floor.append(seconds / (work.floor / bare.rate))
        print(
            f"  round: wavefront {seconds:.1f} s, bare product {bare.rate / 1e9:.0f} GFLOP/s, "
            f"floor {work.floor / bare.rate:.1f} s ({work.floor / 1e12:.2f} TFLOP), over floor {over_floor[-1]:.3f}"
        )
        for way in ways:
            taken = []
            with memory_above(taken):
                timed = [_seconds(way, layers) for layers in picked]
            each = statistics.median(t for t, _ in timed)
            ratios.setdefault(way.name, []).append(each * runs / seconds)
            memory.setdefault(way.name, []).extend(taken)
            if way.name == rivals.Loop.name:
                scores = [s for _, s in timed]
        taken = []
        with memory_above(taken):
            seconds_plain, _, losses = work.timed(plain, both)
        ratios.setdefault("krs, plain engine", []).append(seconds_plain / 5 * runs / seconds)  # 3 windows, 2 base runs
        memory.setdefault("krs, plain engine", []).extend(taken)
        m = losses.mask
        found = 1 - losses.restored[:, m].mean(1) / losses.baseline[m].mean()
        apart.append(max(abs(a - b) for a, b in zip(found, scores, strict=True)))
        other = work.run(wavefront, Sampling(bare), both)
        apart.append(float(abs(1 - other.restored[:, m].mean(1) / other.baseline[m].mean() - found).max()))
    print(f"\n| {len(work.plan)} restorations | seconds | times as long as wavefront | MB above the models |")
    print("| --- | --- | --- | --- |")
    print(f"| wavefront | {statistics.median(wave):.1f} | 1 | {max(memory['wavefront']):.0f} |")
    for name, found in ratios.items():
        middle = statistics.median(found)
        spread = f"{min(found):.2f}-{max(found):.2f}"
        print(
            f"| {name} | {middle * statistics.median(wave):.0f} | {middle:.2f} ({spread}) | {max(memory[name]):.0f} |"
        )
    print(f"\nwavefront / floor: {statistics.median(over_floor):.3f} ({min(over_floor):.3f}-{max(over_floor):.3f})")
    print(f"largest difference of a score between loop, plain and wavefront: {max(apart):.1e}\n")


KINDS = {
    "matrix products": ("mm", "addmm", "bmm", "matmul", "linear"),
    "attention": ("_scaled_dot_product",),
    "copies and gathers": ("copy_", "cat", "index", "clone", "fill_", "zero_", "select"),
    "activation functions": ("silu", "gelu", "relu", "tanh"),
    "norms, rotations, additions": ("mul", "add", "pow", "mean", "sum", "rsqrt", "neg", "sub", "div", "norm", "where"),
}


def profile(work: Work) -> None:
    """Print the share of each kind of operation in one wavefront sweep."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiled

    with profiled(activities=[ProfilerActivity.CPU]) as seen:
        work.run(wavefront, Sampling(work.bare(), every=1e9))
    shares = dict.fromkeys([*KINDS, "the rest"], 0.0)
    for row in seen.key_averages():
        name = row.key.removeprefix("aten::")
        kind = next((k for k, names in KINDS.items() if name.startswith(names)), "the rest")
        shares[kind] += row.self_cpu_time_total
    total = sum(shares.values())
    for kind, time_taken in shares.items():
        print(f"| {kind} | {100 * time_taken / total:.1f} % |")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=10)
    parser.add_argument("--form", choices=("chat", "text", "both"), default="both")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--shape", choices=tuple(SHAPES), help="random weights of this shape, not the bundled model")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    chosen = parser.parse_args()
    if chosen.form == "both" and not chosen.shape:  # each in a process of its own: memory is compared too
        for form in ("chat", "text"):
            subprocess.run([sys.executable, __file__, *sys.argv[1:], "--form", form], check=True)
        return
    warnings.simplefilter("ignore")
    print(machine())
    tokenizer = None
    if chosen.shape:
        dtype = getattr(torch, chosen.dtype)
        vanilla, unlearned = random_pair(SHAPES[chosen.shape], chosen.device, dtype)
        shared = list(range(100, 120))  # as long as a chat template's system prompt
        forms = {"random": tuple(tuple(shared + [7 * i + j + 200 for j in range(20)]) for i in range(chosen.prompts))}
    else:
        vanilla, tokenizer = krs.load("smollm2", device=chosen.device, dtype=getattr(torch, chosen.dtype))
        unlearned = moved(vanilla)
        forms = {chosen.form: prompts_of(questions(chosen.prompts), tokenizer, chosen.form == "chat")}
    for form, prompts in forms.items():
        print(f"\n## {form} prompts\n")
        work = Work.of(vanilla, unlearned, prompts)
        if chosen.profile:
            profile(work)
        else:
            compare(work, tokenizer, chosen.rounds, only_loop=chosen.shape is not None)


if __name__ == "__main__":
    main()
