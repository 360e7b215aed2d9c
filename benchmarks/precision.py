"""Is "value vectors recover almost nothing" an effect of training in bf16?

    krs prepare solar_system --model smollm2 --chat -o out/solar
    python benchmarks/precision.py out/solar

The same unlearning run from the same weights (rounded to bf16 first), trained four ways: with fp32 weights; the same,
rounded to bf16 at the end, as a checkpoint is saved; with weights and optimiser in bf16; and, with --until-same, that
again with as many steps as it takes to push the forget answers as far. A processor without bf16 arithmetic takes one to
two minutes a step in bf16. For each: the share of weights that are bit for bit the vanilla
model's, the forget loss, and the scores of value vectors and of coefficients + attention.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

import krs
from krs import unlearn
from krs.unlearn.callbacks import mean_nll
from krs.unlearn.examples import to_examples
from krs.unlearn.methods import method

SETTINGS = ["value_vectors", "mlp_coef+attn_out"]


def main() -> None:
    """Train, compare, sweep, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prepared", type=Path, help="what `krs prepare --chat` wrote")
    parser.add_argument("--method", default="npo_kl")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--until-same", action="store_true", help="train in bf16 until the forget NLL is that of fp32")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE")
    given = parser.parse_args()
    settings = {name: json.loads(value) for name, _, value in (s.partition("=") for s in given.set)}
    loaded, tokenizer = krs.load(given.model, dtype=torch.bfloat16)
    vanilla = loaded.float()
    sides: dict[str, Any] = {"forget": texts(given.prepared / "forget.jsonl")}
    if getattr(method(given.method), "needs_retain", False) and not getattr(
        method(given.method), "makes_retain", False
    ):
        sides["retain"] = texts(given.prepared / "retain.jsonl")
    examples = to_examples(sides["forget"], tokenizer, 500, "forget")
    questions = [t["prompt"] for t in sides["forget"]]
    steps = settings.get("steps", method(given.method).config_class().steps)

    def train(**more: Any) -> nn.Module:
        return unlearn.run(given.method, vanilla, tokenizer=tokenizer, **sides, **(settings | more))

    def row(name: str, model: nn.Module) -> float:
        drift = krs.metrics.drift(vanilla, model).by_component()
        table = krs.sweep(vanilla, model, questions, tokenizer=tokenizer, settings=SETTINGS, progress=False).krs
        nll = mean_nll(model, examples, 4)
        same = ", ".join(f"{c} {drift.identical[c]:.4f}" for c in ("value_vectors", "keys", "attention_in"))
        moved = drift.relative_change["value_vectors"]
        scores = "; ".join(
            f"{s}: peak {table[s].max():.4f} ({table[s].idxmax()}), mean {table[s].mean():.4f}" for s in SETTINGS
        )
        print(
            f"{name}: forget NLL {nll:.3f} | identical: {same} | value vectors moved {moved:.2e} | {scores}", flush=True
        )
        return nll

    print(f"{given.method} {settings}; vanilla forget NLL {mean_nll(vanilla, examples, 4):.3f}", flush=True)
    full = train()
    target = row("fp32", full)
    row("fp32, rounded to bf16 at the end", full.to(torch.bfloat16).float())
    del full
    row("bf16-pure, same steps", train(precision="bf16-pure"))
    if not given.until_same:
        return
    more = {"steps": 6 * steps, "stop_forget_nll": target}
    row(f"bf16-pure, until the same forget NLL (at most {6 * steps} steps)", train(precision="bf16-pure", **more))


def texts(path: Path) -> list[dict[str, Any]]:
    """Pairs whose prompts are chat messages."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [row | {"prompt": [{"role": "user", "content": row["prompt"]}]} for row in rows]


if __name__ == "__main__":
    main()
