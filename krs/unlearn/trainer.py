"""The one trainer of all gradient methods: a `transformers.Trainer` that sees forget and retain sequences."""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import parse_flag_from_env
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm import tqdm
from transformers import Trainer

from krs.errors import KrsError
from krs.generation.forward import accepted
from krs.unlearn.callbacks import in_any_process
from krs.unlearn.examples import Example, collate
from krs.unlearn.gradients import SideNorms
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

    The reference is a model of its own, or with `None` the model in training with its adapter disabled.
    """

    def __init__(self, method: Method, reference: nn.Module | None, **options: Any) -> None:
        super().__init__(**options)
        if (self.args.fsdp or parse_flag_from_env("ACCELERATE_USE_FSDP")) and not self.is_fsdp_enabled:
            raise KrsError(
                "FSDP: accelerate divides models among GPUs (or other accelerators) only, and would train whole copies "
                f"on {self.args.device.type!r}: leave it out, or load the model to a GPU"
            )
        precision = self.accelerator.mixed_precision
        if precision != "no" and not self.accelerator.native_amp:
            raise KrsError(
                f"accelerate has no {precision} mixed precision on {self.args.device.type!r}, and would train in fp32 "
                "without a word: leave it out, or ask for another"
            )
        self.method = method
        self.reference = reference
        self.loss_is_scaled_for_ga = True
        self._terms: dict[str, float] = {}
        self._halves: dict[str, tuple[Tensor, Tensor]] = {}
        self._norms: SideNorms | None = None
        self.unsaved: str | None = None

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device) -> Any:
        """The forwards of one optimiser step, and what their losses are to be divided by."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        counts = {"processes": float(self.accelerator.num_processes)}
        for side in ("forget", "retain"):
            labels = [b[side]["labels"] for b in batches if side in b]
            counts[f"{side}_tokens"] = self._over_processes(sum(int(live_tokens(x).sum()) for x in labels))
            counts[f"{side}_rows"] = self._over_processes(sum(len(x) for x in labels))
        if self._norms is not None:
            self._norms.clear()
        elif self.method.config.gradient_norms and self.accelerator.num_processes == 1:  # weights stay from here on
            student: Any = self.model
            self._norms = SideNorms(student.parameters(), keep=self.args.gradient_accumulation_steps > 1)
        return batches, counts

    def _over_processes(self, value: float | int) -> float:
        return float(self.accelerator.gather(torch.tensor([float(value)], device=self.args.device)).sum())

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """One forward and its backward; the loss's gradient goes through each side's logits apart (see `_side`)."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        for side, (logits, leaf) in self._halves.items():
            assert self._norms is not None
            if leaf.grad is not None:
                scaler = self.accelerator.scaler
                with self._norms.of(side, scale=1.0 if scaler is None else scaler.get_scale()):
                    logits.backward(leaf.grad)
        self._halves.clear()
        return loss

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The method's loss on one forward of forget (and retain) sequences."""
        counts = num_items_in_batch
        forget = self._side(model, inputs, "forget", counts)
        retain = self._side(model, inputs, "retain", counts) if self.method.needs_retain else None
        terms = self.method.loss(forget, retain)
        total = torch.stack(list(terms.values())).sum()
        if in_any_process(not torch.isfinite(total), self.args.device):
            raise KrsError(self._not_finite(float(total.detach())))
        for name, value in terms.items():
            self._terms[name] = self._terms.get(name, 0.0) + float(value.detach())
        total = total * counts["processes"]
        return (total, {"terms": terms}) if return_outputs else total

    def _not_finite(self, loss: float) -> str:
        """What to say in each of the processes, of which one at least has such a loss."""
        step = self.state.global_step
        said = (
            f"the loss is {loss} at step {step}"
            if not math.isfinite(loss)
            else (f"the loss of another process is not finite at step {step}")
        )
        remedy = "lower the learning rate, or take fewer steps"
        if step == 0:
            remedy = (
                "nothing has been trained yet, so it is the model or the method's loss that overflows: load the "
                "model in another precision (bf16 or fp32 where it is fp16)"
            )
        return f"{self.method.name}: {said}: {remedy}"

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """A checkpoint that cannot be written does not end the run: it is said, and the next one is tried."""
        self.unsaved = None
        try:
            super()._save_checkpoint(model, trial)
        except Exception as reason:
            if self.accelerator.num_processes > 1:  # the others wait for it
                raise
            self.unsaved = str(reason).strip().splitlines()[0] if str(reason).strip() else type(reason).__name__
            step = self.state.global_step
            shutil.rmtree(Path(str(self.args.output_dir)) / f"checkpoint-{step}", ignore_errors=True)
            said = f"the checkpoint of step {step} could not be written ({self.unsaved}): training goes on without it"
            tqdm.write(said, file=sys.stderr)

    def _side(self, model: nn.Module, inputs: dict[str, Any], side: str, counts: dict[str, float]) -> Side:
        """A side's logits. To tell gradients apart, the method is given a leaf in their place: its gradient, once the
        loss has been differentiated, is what goes back through the model."""
        batch = dict(inputs[side])
        labels = batch.pop("labels")
        live = self.method.reference in ("live", "both") and side == "retain"
        reference = self._reference_logits(model, batch) if live else None
        logits = model(**batch).logits
        if self._norms is not None:
            leaf = logits.detach().requires_grad_()
            self._halves[side] = (logits, leaf)
            logits = leaf
        return Side(
            logits=logits,
            labels=labels,
            n_tokens=counts[f"{side}_tokens"],
            n_rows=counts[f"{side}_rows"],
            ref_logits=reference,
            ref_logprob=inputs.get(f"{side}_ref_logprob"),
        )

    @torch.no_grad()
    def _reference_logits(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        with ExitStack() as stack:
            reference: Any = self.reference
            if reference is None:
                reference = self.accelerator.unwrap_model(model)
                stack.enter_context(reference.disable_adapter())
                stack.callback(reference.train, reference.training)
                reference.eval()
            device = next(reference.parameters()).device
            moved = {name: value.to(device) for name, value in batch.items()}
            return reference(**moved).logits.to(batch["input_ids"].device)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Say what a checkpoint lacks, but for weights that are tied to others and so need not be in it."""
        tied = set(getattr(self.model, "_tied_weights_keys", None) or ())
        if set(load_result.missing_keys) - tied or load_result.unexpected_keys:
            super()._issue_warnings_after_load(load_result)

    def gathered(self, fresh: Callable[[], nn.Module]) -> nn.Module | None:
        """The trained model with all of its weights; `fresh` makes one for weights that were sharded over processes.

        `None` where another process has collected the shards.
        """
        if self._norms is not None:
            self._norms.close()
        if not self.is_fsdp_enabled:
            whole = self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)  # mixed precision ends here
            if not hasattr(whole, "_hf_hook"):
                whole.__dict__.pop("forward", None)  # the original one, bound anew: a copy of the model would share it
            return whole
        weights = self.accelerator.get_state_dict(self.model_wrapped)
        if not self.is_world_process_zero():
            return None
        whole = fresh()
        whole.load_state_dict(weights)
        return whole

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log the terms and the gradient norms of the sides beside the loss."""
        if "loss" in logs:
            logs |= {f"loss_{name}": round(self._over_processes(value), 4) for name, value in self._terms.items()}
            norms = self._norms.norms() if self._norms is not None else {}
            logs |= {f"grad_norm_{side}": norm for side, norm in norms.items()}
            self._terms.clear()
        super().log(logs, *args, **kwargs)


@torch.no_grad()
def reference_logprobs(model: nn.Module, examples: Sequence[Example], batch_size: int, side: str) -> Tensor:
    """Each example's summed log-probability under the vanilla model, so that it need not run in training.

    Raises `KrsError` that names the text for one that is not finite.
    """
    found = []
    device = next(model.parameters()).device
    for start in range(0, len(examples), batch_size):
        batch = {k: v.to(device) for k, v in collate(examples[start : start + batch_size]).items()}
        labels = batch.pop("labels")
        logprobs = token_logprobs(model(**accepted(model, batch)).logits, labels).sum(-1).cpu()
        if not torch.isfinite(logprobs).all():
            i = start + int((~torch.isfinite(logprobs)).nonzero()[0])
            raise KrsError(
                f"the vanilla model's logits of {side} text {i} are not finite: load it in another precision (bf16 or "
                "fp32 where it is fp16)"
            )
        found.append(logprobs)
    return torch.cat(found)
