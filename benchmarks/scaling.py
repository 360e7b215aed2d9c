"""How a sweep's time grows with prompts, answer tokens and windows: the wavefront engine and a loop of hooks.

    python benchmarks/scaling.py

The loop's time is that of one restoration, times their number.
"""

from __future__ import annotations

import warnings

import rivals
from common import Work, machine, moved, prompts_of, questions
from sweep import _seconds

import krs
from krs import windows


def _line(what: str, work: Work) -> None:
    seconds, bare, _ = work.timed()
    loop = rivals.Loop(rivals.Padded(work.vanilla, work.unlearned, work.batch, work.answers))
    layers = tuple(range(13, 18))
    _seconds(loop, layers)
    each = min(_seconds(loop, layers)[0] for _ in range(2))
    whole = each * (len(work.plan) + 2)
    floor = work.floor / bare.rate
    print(
        f"| {what} | {len(work.plan)} | {seconds:.1f} | {whole:.0f} | {whole / seconds:.1f} | {seconds / floor:.2f} |",
        flush=True,
    )


def main() -> None:
    """Measure and print."""
    warnings.simplefilter("ignore")
    print(machine())
    vanilla, tokenizer = krs.load("smollm2")
    unlearned = moved(vanilla)
    print("| | restorations | wavefront, s | loop, s | times as fast | over floor |")
    print("| --- | --- | --- | --- | --- | --- |")
    ten = prompts_of(questions(10), tokenizer, chat=True)
    for n in (1, 5, 20, 40):
        _line(f"{n} prompts", Work.of(vanilla, unlearned, prompts_of(questions(n), tokenizer, chat=True)))
    for n in (10, 60):
        _line(f"10 prompts, {n} tokens", Work.of(vanilla, unlearned, ten, n_tokens=n))
    shapes = {
        "1 window": windows.of([[13, 14, 15, 16, 17]]),
        "16 windows of 15": windows.sliding(15),
        "30 windows of 1": windows.each(),
        "30 windows from layer 0": windows.up_to_layer(),
    }
    for name, shape in shapes.items():
        _line(f"10 prompts, {name}", Work.of(vanilla, unlearned, ten, windows=shape))


if __name__ == "__main__":
    main()
