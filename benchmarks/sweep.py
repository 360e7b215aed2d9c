"""How long a sweep takes, engine by engine, measured side by side in one run.

    make bench                              # or: python benchmarks/sweep.py [--windows 6] [--prompts 10]

Prints, for the bundled model, seconds a restoration for a loop as a researcher writes it (a padded batch, torch hooks,
full logits) and for krs's plain engine, their ratio, and how far apart their scores are. The two take turns, so that a
busy machine slows both.
"""

from __future__ import annotations

import argparse
import copy
import platform
import statistics
import time

import torch

import krs
from krs import ATTN_OUT, MLP_COEF, windows
from krs.data.concepts import as_chat, load_concept
from krs.prompts import encode
from krs.restore.generate import greedy


def moved(model: torch.nn.Module) -> torch.nn.Module:
    """A copy whose layers have moved by 2 %: what it says does not matter to the time."""
    other = copy.deepcopy(model)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            if "layers" in name:
                parameter.add_(0.02 * parameter.std() * torch.randn_like(parameter))
    return other


class Loop:
    """The loop as a researcher writes it, for coefficients and attention outputs of a Llama."""

    def __init__(self, vanilla: torch.nn.Module, unlearned: torch.nn.Module, prompts: list, n_tokens: int) -> None:
        self.unlearned = unlearned
        answers = greedy(vanilla, prompts, n_tokens, progress=False)
        rows = [p + a for p, a in zip(prompts, answers, strict=True)]
        longest = max(map(len, rows))
        self.ids = torch.tensor([row + (0,) * (longest - len(row)) for row in rows])
        self.mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
        self.scored = torch.zeros_like(self.mask, dtype=torch.bool)
        for i, (p, row) in enumerate(zip(prompts, rows, strict=True)):
            self.scored[i, len(p) - 1 : len(row) - 1] = True
        self.kept: dict = {}
        handles = []
        for i, layer in enumerate(vanilla.model.layers):
            mlp, attn = layer.mlp.down_proj, layer.self_attn.o_proj
            handles.append(mlp.register_forward_pre_hook(lambda _, a, k=("m", i): self.kept.update({k: a[0]})))
            handles.append(attn.register_forward_hook(lambda _, a, o, k=("a", i): self.kept.update({k: o})))
        self.target = self._logits(vanilla)
        for handle in handles:
            handle.remove()
        self.base = self._mse(self._logits(unlearned))

    @torch.no_grad()
    def _logits(self, model: torch.nn.Module) -> torch.Tensor:
        return model(input_ids=self.ids, attention_mask=self.mask).logits

    def _mse(self, logits: torch.Tensor) -> float:
        return ((logits - self.target)[self.scored] ** 2).mean().item()

    def score(self, layers: tuple[int, ...]) -> float:
        """KRS of one window, coefficients and attention outputs put back."""
        handles = []
        for i in layers:
            layer = self.unlearned.model.layers[i]
            m, a = self.kept["m", i], self.kept["a", i]
            handles.append(layer.mlp.down_proj.register_forward_pre_hook(lambda _, __, m=m: (m,)))
            handles.append(layer.self_attn.o_proj.register_forward_hook(lambda _, __, ___, a=a: a))
        loss = self._mse(self._logits(self.unlearned))
        for handle in handles:
            handle.remove()
        return 1 - loss / self.base


def plain_seconds(
    vanilla: torch.nn.Module, unlearned: torch.nn.Module, prompts: list, window: tuple[int, ...]
) -> tuple[float, krs.SweepResult]:
    """Seconds that the plain engine takes for one window, base runs included, and the result."""
    options = {"settings": MLP_COEF + ATTN_OUT, "windows": windows.of([window]), "engine": "plain"}
    result = krs.sweep(vanilla, unlearned, prompts, progress=False, **options)
    return result.provenance["seconds"], result


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=int, default=6, help="how many windows of 5 to time")
    parser.add_argument("--prompts", type=int, default=10)
    chosen = parser.parse_args()
    vanilla, tokenizer = krs.load("smollm2")
    unlearned = moved(vanilla)
    prompts = list(encode(as_chat(load_concept("harry_potter").questions[: chosen.prompts]), tokenizer))
    starts = torch.linspace(0, 25, chosen.windows).long().tolist()
    listed = [tuple(range(s, s + 5)) for s in starts]

    loop = Loop(vanilla, unlearned, prompts, 30)
    by_loop, by_plain, apart = [], [], []
    for window in listed:
        start = time.perf_counter()
        score = loop.score(window)
        by_loop.append(time.perf_counter() - start)
        seconds, result = plain_seconds(vanilla, unlearned, prompts, window)
        by_plain.append(seconds / 3)  # the restoration, and the base runs of the two models
        apart.append(abs(result.krs.iloc[0, 0] - score))

    hand, plain = statistics.median(by_loop), statistics.median(by_plain)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}")
    print(f"{len(prompts)} prompts, {loop.mask.numel()} padded tokens, {int(loop.scored.sum())} scored")
    print(f"loop as written by hand   {hand:6.2f} s a restoration (median of {len(listed)})")
    print(f"krs, plain engine         {plain:6.2f} s a forward (median of {len(listed)} times three)")
    print(f"loop / plain              {hand / plain:6.2f}")
    print(f"largest difference of a score {max(apart):.1e}")


if __name__ == "__main__":
    main()
