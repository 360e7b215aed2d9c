"""What other questions than the paper's cost: the residual stream of each layer, and two measures beside the score.

    python benchmarks/questions.py [--rounds 3] [--unlearned DIR]

1. The residual stream of each layer, of the unlearned model in the vanilla one, and the log-probability of an answer:
   `krs.sweep` as users call it, against a loop of one hooked forward a layer over a padded batch.
2. The paper's sweep with `kl` and `answer_logprob` beside the score, against the same without.

Ten chat prompts, answers of thirty tokens. Each round times every way, one after the other; ratios are taken within a
round, and the median is printed.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch
from common import machine, moved, prompts_of, questions

import krs
from krs.generation.greedy import greedy


def loop(recipient: Any, donor: Any, prompts: tuple, answers: tuple) -> list[float]:
    """Mean log-probability of the answers' tokens, a number a layer, one hooked forward each."""
    rows = [list(p) + list(a) for p, a in zip(prompts, answers, strict=True)]
    longest = max(map(len, rows))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    kept: dict[int, Any] = {}
    layers = recipient.model.layers
    handles = [layer.register_forward_hook(_keeper(kept, i)) for i, layer in enumerate(donor.model.layers)]
    found = []
    with torch.no_grad():
        donor(input_ids=ids, attention_mask=mask)
        for handle in handles:
            handle.remove()
        for i, layer in enumerate(layers):
            handle = layer.register_forward_hook(lambda _, __, ___, i=i: kept[i])
            logits = recipient(input_ids=ids, attention_mask=mask).logits
            handle.remove()
            summed = sum(_answered(row, p, a) for row, p, a in zip(logits, prompts, answers, strict=True))
            found.append(summed / sum(map(len, answers)))
    return found


def _keeper(kept: dict[int, Any], i: int) -> Any:
    return lambda _, __, output: kept.update({i: output})


def _answered(logits: torch.Tensor, prompt: tuple, answer: tuple) -> float:
    scored = logits[len(prompt) - 1 : len(prompt) + len(answer) - 1].log_softmax(-1)
    return scored[range(len(answer)), list(answer)].sum().item()


def _timed(call: Any) -> tuple[float, Any]:
    start = time.perf_counter()
    found = call()
    return time.perf_counter() - start, found


def main() -> None:
    """Print both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--unlearned", help="a model that was unlearned from the bundled one; one moved by 2 %% else")
    asked = parser.parse_args()
    vanilla, tokenizer = krs.load("smollm2", device="cpu")
    unlearned = moved(vanilla) if asked.unlearned is None else krs.load(asked.unlearned, device="cpu")[0]
    prompts = prompts_of(questions(10), tokenizer, chat=True)
    answers = greedy(vanilla, prompts, 30, progress=False)
    given: dict[str, Any] = {"answers": [list(a) for a in answers], "n_tokens": 30, "progress": False}
    given["tokenizer"] = tokenizer
    print(machine())

    resid = {"settings": ["resid"], "windows": krs.windows.each(), "direction": "transplant"}
    more = ["kl", "answer_logprob"]
    ways = {
        "loop": lambda: loop(vanilla, unlearned, prompts, answers),
        "resid": lambda: krs.sweep(vanilla, unlearned, prompts, measures=["answer_logprob"], **resid, **given),
        "alone": lambda: krs.sweep(vanilla, unlearned, prompts, **given),
        "beside": lambda: krs.sweep(vanilla, unlearned, prompts, measures=more, **given),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(1, asked.rounds + 1):
        found = {}
        for name, call in ways.items():
            spent, found[name] = _timed(call)
            seconds[name].append(spent)
        print(f"round {number}: " + ", ".join(f"{name} {s[-1]:.1f} s" for name, s in seconds.items()), flush=True)
    ours = found["resid"].table("answer_logprob").iloc[:, 0]
    apart = max(abs(a - b) for a, b in zip(ours, found["loop"], strict=True))
    faster = statistics.median(a / b for a, b in zip(seconds["loop"], seconds["resid"], strict=True))
    dearer = statistics.median(a / b for a, b in zip(seconds["beside"], seconds["alone"], strict=True))
    print(
        f"the residual stream of each layer: {faster:.2f} times as fast as a loop (numbers at most {apart:.1e} apart)"
    )
    print(f"kl and answer_logprob beside the score: {dearer:.2f} times the sweep without them")


if __name__ == "__main__":
    main()
