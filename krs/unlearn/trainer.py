"""The one trainer of all gradient methods: a `transformers.Trainer` that sees forget and retain sequences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from krs.errors import KrsError
from krs.generation.forward import accepted
from krs.unlearn.examples import Example, collate
from krs.unlearn.losses import live_tokens, token_logprobs
from krs.unlearn.methods import Method, Side


class Pairs(Dataset[dict[str, Any]]):
    """Forget examples, each with the retain example that goes with it (retain ones repeat if they are fewer)."""

    def __init__(
        self,
        forget: Sequence[Example],
        retain: Sequence[Example],
        ref_logprob: Tensor | None = None,
        retain_ref_logprob: Tensor | None = None,
    ) -> None:
        self.forget, self.retain = forget, retain
        self.ref_logprob, self.retain_ref_logprob = ref_logprob, retain_ref_logprob

    def __len__(self) -> int:
        return max(len(self.forget), len(self.retain))

    def __getitem__(self, i: int) -> dict[str, Any]:
        f, r = i % len(self.forget), i % len(self.retain) if self.retain else 0
        return {
            "forget": self.forget[f],
            "retain": self.retain[r] if self.retain else None,
            "forget_ref_logprob": None if self.ref_logprob is None else self.ref_logprob[f],
            "retain_ref_logprob": None if self.retain_ref_logprob is None else self.retain_ref_logprob[r],
        }


def collate_pairs(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """A batch of `Pairs`: two padded batches side by side."""
    batch: dict[str, Any] = {"forget": collate([r["forget"] for r in rows])}
    if rows[0]["retain"] is not None:
        batch["retain"] = collate([r["retain"] for r in rows])
    for name in ("forget_ref_logprob", "retain_ref_logprob"):
        if rows[0][name] is not None:
            batch[name] = torch.stack([r[name] for r in rows])
    return batch


class UnlearnTrainer(Trainer):
    """`transformers.Trainer` whose loss is a `Method`'s.

    Sums over tokens and rows are divided by their number in the whole optimiser step, forget and retain apart, so that
    gradient accumulation and several processes give the gradient of one large batch.
    """

    def __init__(self, method: Method, reference: nn.Module | None, **options: Any) -> None:
        super().__init__(**options)
        self.method = method
        self.reference = reference
        self.loss_is_scaled_for_ga = True
        self._terms: dict[str, float] = {}

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device) -> Any:
        """The forwards of one optimiser step, and what their losses are to be divided by."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        counts = {"processes": float(self.accelerator.num_processes)}
        for side in ("forget", "retain"):
            labels = [b[side]["labels"] for b in batches if side in b]
            counts[f"{side}_tokens"] = self._over_processes(sum(int(live_tokens(x).sum()) for x in labels), device)
            counts[f"{side}_rows"] = self._over_processes(sum(len(x) for x in labels), device)
        return batches, counts

    def _over_processes(self, count: int, device: torch.device) -> float:
        return float(self.accelerator.gather(torch.tensor([float(count)], device=device)).sum())

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The method's loss on one forward of forget (and retain) sequences."""
        counts = num_items_in_batch
        forget = self._side(model, inputs, "forget", counts)
        retain = self._side(model, inputs, "retain", counts) if self.method.needs_retain else None
        terms = self.method.loss(forget, retain)
        total = torch.stack(list(terms.values())).sum()
        if not torch.isfinite(total):
            raise KrsError(
                f"{self.method.name}: the loss is {float(total.detach())} at step {self.state.global_step}: lower the "
                "learning rate, or take fewer steps"
            )
        for name, value in terms.items():
            self._terms[name] = self._terms.get(name, 0.0) + float(value.detach())
        total = total * counts["processes"]
        return (total, {"terms": terms}) if return_outputs else total

    def _side(self, model: nn.Module, inputs: dict[str, Any], side: str, counts: dict[str, float]) -> Side:
        batch = dict(inputs[side])
        labels = batch.pop("labels")
        live = self.method.reference in ("live", "both") and side == "retain"
        return Side(
            logits=model(**batch).logits,
            labels=labels,
            n_tokens=counts[f"{side}_tokens"],
            n_rows=counts[f"{side}_rows"],
            ref_logits=self._reference_logits(batch) if live else None,
            ref_logprob=inputs.get(f"{side}_ref_logprob"),
        )

    @torch.no_grad()
    def _reference_logits(self, batch: dict[str, Tensor]) -> Tensor:
        assert self.reference is not None
        device = next(self.reference.parameters()).device
        moved = {name: value.to(device) for name, value in batch.items()}
        return self.reference(**moved).logits.to(batch["input_ids"].device)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log the terms beside the loss."""
        if "loss" in logs:
            logs |= {f"loss_{name}": round(value, 4) for name, value in self._terms.items()}
            self._terms.clear()
        super().log(logs, *args, **kwargs)


class OneBar(TrainerCallback):
    """One progress bar that shows the loss, and nothing printed beside it."""

    def __init__(self, doing: str, show: bool) -> None:
        self.doing, self.show = doing, show
        self.shown: Any = None

    def on_train_begin(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """Open the bar."""
        from krs.progress import bar

        self.shown = bar(state.max_steps, self.doing, show=self.show and state.is_world_process_zero, unit="step")

    def on_step_end(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """One step further."""
        self.shown.update()

    def on_log(self, args: TrainingArguments, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Show the terms of the loss."""
        terms = {k.removeprefix("loss_"): f"{v:.3f}" for k, v in (logs or {}).items() if k.startswith("loss_")}
        if terms:
            self.shown.set_postfix(terms)

    def on_train_end(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """Close the bar."""
        self.shown.close()


@torch.no_grad()
def reference_logprobs(model: nn.Module, examples: Sequence[Example], batch_size: int) -> Tensor:
    """Each example's summed log-probability under the vanilla model, so that it need not run in training."""
    found = []
    device = next(model.parameters()).device
    for start in range(0, len(examples), batch_size):
        batch = {k: v.to(device) for k, v in collate(examples[start : start + batch_size]).items()}
        labels = batch.pop("labels")
        found.append(token_logprobs(model(**accepted(model, batch)).logits, labels).sum(-1).cpu())
    return torch.cat(found)
