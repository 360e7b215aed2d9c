"""What the benchmarks share: pairs of models, prompts as a batch, timed passes, and the memory that they take."""

from __future__ import annotations

import copy
import gc
import platform
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from floor import BareRate, Sampling, operations

import krs
from krs.data.concepts import as_chat, load_concept
from krs.generation.greedy import greedy
from krs.hooks import anatomy
from krs.metrics.measures import measures
from krs.prompts import TokenBatch, encode, next_token_batch
from krs.restore.execution import write
from krs.restore.job import Chunk, Job
from krs.restore.losses import Losses
from krs.restore.plain import PlainEngine
from krs.restore.plan import Plan
from krs.restore.wavefront import WavefrontEngine

plain, wavefront = PlainEngine(), WavefrontEngine()


def moved(model: torch.nn.Module) -> torch.nn.Module:
    """A copy whose layers have moved by 2 %: what it says does not matter to the time."""
    other = copy.deepcopy(model)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            if "layers" in name:
                parameter.add_(0.02 * parameter.std() * torch.randn_like(parameter))
    return other


def random_pair(shape: dict[str, int], device: str, dtype: torch.dtype) -> tuple[torch.nn.Module, torch.nn.Module]:
    """Two random Llamas of some shape, one a little off the other."""
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.device(device):
        vanilla = LlamaForCausalLM._from_config(LlamaConfig(**shape, eos_token_id=None), dtype=dtype).eval()
    return vanilla, moved(vanilla)


@dataclass
class Work:
    """A pair, prompts with their answers, and a plan: one sweep to be timed."""

    vanilla: torch.nn.Module
    unlearned: torch.nn.Module
    batch: TokenBatch
    answers: tuple
    plan: Plan
    measures: tuple = ()

    @staticmethod
    def of(
        vanilla: torch.nn.Module, unlearned: torch.nn.Module, prompts: tuple, n_tokens: int = 30, windows: Any = 5
    ) -> Work:
        """The paper's four settings on the vanilla model's own answers."""
        answers = greedy(vanilla, prompts, n_tokens, progress=False)
        plan = Plan.make(None, windows, n_layers=vanilla.config.num_hidden_layers)
        return Work(vanilla, unlearned, next_token_batch(prompts, answers), answers, plan)

    @property
    def floor(self) -> float:
        """Unavoidable operations."""
        return operations(self.vanilla.config, self.plan, self.batch)

    def run(self, engine: Any, shown: Any, plan: Plan | None = None, budget: int = 2**30) -> Losses:
        """One sweep by an engine."""
        chosen = self.plan if plan is None else plan
        wanted = measures(self.measures)
        losses = Losses.empty(chosen, self.batch, wanted)
        done = np.zeros((len(chosen), len(self.batch)), dtype=bool)
        vanilla, unlearned = anatomy(self.vanilla), anatomy(self.unlearned)
        job = Job(chosen, unlearned, vanilla, vanilla, self.batch, wanted, budget, done)
        for step in engine.run(job):
            if isinstance(step, Chunk):
                write(step, job, losses)
            else:
                shown.update(step.steps)
        return losses

    def timed(self, engine: Any = wavefront, plan: Plan | None = None) -> tuple[float, BareRate, Losses]:
        """Seconds of one sweep, without those of the bare products sampled in between, and the samples."""
        bare = self.bare()
        shown = Sampling(bare)
        start = time.perf_counter()
        losses = self.run(engine, shown, plan)
        seconds = time.perf_counter() - start - shown.spent
        if not bare.seconds:  # over before the first was due
            bare.sample()
        return seconds, bare, losses

    def bare(self) -> BareRate:
        """Products of the MLP's shape, at the size that is fastest here."""
        config, weight = self.vanilla.config, next(self.vanilla.parameters())
        return BareRate(4096 if weight.is_cuda else 1280, config.hidden_size, config.intermediate_size, weight)


def questions(n: int) -> list[str]:
    """Up to 44 questions."""
    concept = load_concept("harry_potter")
    return [*concept.questions, *concept.retain_questions, *concept.unrelated_questions][:n]


def prompts_of(asked: list[str], tokenizer: Any, chat: bool) -> tuple:
    """Token ids, through the chat template or as `Question: … Answer:`."""
    return encode(as_chat(tuple(asked)) if chat else [f"Question: {q}\nAnswer:" for q in asked], tokenizer)


@contextmanager
def memory_above(found: list[float]) -> Iterator[None]:
    """Append to `found` by how many MB this process grew beyond what it had, at its largest."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        yield
        found.append((torch.cuda.max_memory_allocated() - before) / 1e6)
        return
    gc.collect()
    before = peak = _resident()
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.01):
            peak = max(peak, _resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
        found.append((peak - before) / 1e6)


def _resident() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * 4096


def machine() -> str:
    """Where this runs."""
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    import transformers

    return (
        f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"transformers {transformers.__version__}, krs {krs.__version__}"
    )


__all__ = ["Work", "machine", "memory_above", "moved", "plain", "prompts_of", "questions", "random_pair", "wavefront"]
