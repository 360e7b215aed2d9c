"""The one trainer of all gradient methods: a `transformers.Trainer` that sees forget and retain sequences."""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from krs.hooks.capture import Activations, captured
from krs.hooks.points import Placement
from krs.progress import bar
from krs.unlearn.callbacks import in_any_process
from krs.unlearn.examples import Example, collate
from krs.unlearn.gradients import SideNorms
from krs.unlearn.losses import live_tokens, token_logprobs
from krs.unlearn.methods import Method
from krs.unlearn.sides import Look, Side, places, wanted_of_vanilla
from krs.unlearn.terms import check_terms, naming_needs_retain


class Pairs(Dataset[dict[str, Any]]):
    """Examples of each side, one of every side together; those of a side with fewer repeat."""

    def __init__(self, sides: Mapping[str, Sequence[Example]]) -> None:
        self.sides = dict(sides)
        self.ref_logprob: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return max(map(len, self.sides.values()))

    def __getitem__(self, i: int) -> dict[str, Any]:
        row: dict[str, Any] = {side: examples[i % len(examples)] for side, examples in self.sides.items()}
        for side, logprobs in self.ref_logprob.items():
            row[_logprob_of(side)] = logprobs[i % len(logprobs)]
        return row


def _logprob_of(side: str) -> str:
    return f"{side}_ref_logprob"


def collate_pairs(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """A batch of `Pairs`: a padded batch of each side, side by side."""
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    return {
        name: torch.stack(values) if isinstance(values[0], Tensor) else collate(values)
        for name, values in columns.items()
    }


class UnlearnTrainer(Trainer):
    """`transformers.Trainer` whose loss is a `Method`'s.

    Sums over tokens and rows are divided by their number in the whole optimiser step, forget and retain apart, so that
    gradient accumulation and several processes give the gradient of one large batch.

    The reference is a model of its own, or with `None` the model in training with its adapter disabled. `looks` are
    the activations that the loss gets beside logits.
    """

    def __init__(self, method: Method, reference: nn.Module | None, looks: Sequence[Look] = (), **options: Any) -> None:
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
        self.looks = tuple(looks)
        self.wanted = wanted_of_vanilla(method.reference, method.sides)
        self.loss_is_scaled_for_ga = True
        self._terms: dict[str, float] = {}
        self._halves: dict[str, list[tuple[Tensor, Tensor]]] = {}
        self._norms: SideNorms | None = None
        self.unsaved: str | None = None

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device) -> Any:
        """The forwards of one optimiser step, and what their losses are to be divided by."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        counts = {"processes": float(self.accelerator.num_processes)}
        for side in self.method.sides:
            labels = [b[side]["labels"] for b in batches]
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
        """One forward and its backward; the loss's gradient goes back through each side apart (see `_side`)."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        for side, halves in self._halves.items():
            assert self._norms is not None
            if reached := [(value, leaf.grad) for value, leaf in halves if leaf.grad is not None]:
                scaler = self.accelerator.scaler
                with self._norms.of(side, scale=1.0 if scaler is None else scaler.get_scale()):
                    torch.autograd.backward([value for value, _ in reached], [grad for _, grad in reached])
        self._halves.clear()
        return loss

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The method's loss on one forward of the sequences of each side."""
        counts = num_items_in_batch
        sides = {side: self._side(model, inputs, side, counts) for side in self.method.sides}
        forget, retain = sides.pop("forget"), sides.pop("retain", None)
        with naming_needs_retain(self.method.name, retain):
            terms = check_terms(self.method.name, self.method.loss(forget, retain, **sides))
        total = torch.stack(list(terms.values())).sum()
        if model.training and not total.requires_grad:
            raise KrsError(
                f"{self.method.name}: nothing that is trained acts on the loss: train other weights (parameters=, "
                "layers=), or look at later layers"
            )
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
        """What a method sees of a side. To tell gradients apart, it is given leaves in the place of logits and
        activations: their gradients, once the loss has been differentiated, are what goes back through the model."""
        batch = dict(inputs[side])
        labels = batch.pop("labels")
        ref_logits, ref_activations = self._reference(model, batch, side)
        logits, activations = _seen(
            self.accelerator.unwrap_model(model), places(self.looks, side, "model"), lambda: model(**batch).logits
        )
        if self._norms is not None:
            halves = self._halves[side] = []
            logits = _leaf(logits, halves)
            activations = activations.map(lambda value: _leaf(value, halves))
        return Side(
            logits=logits,
            labels=labels,
            n_tokens=counts[f"{side}_tokens"],
            n_rows=counts[f"{side}_rows"],
            ref_logits=ref_logits if self.wanted.get(side) == "logits" else None,
            ref_logprob=inputs.get(_logprob_of(side)),
            activations=activations,
            ref_activations=ref_activations,
        )

    @torch.no_grad()
    def _reference(self, model: nn.Module, batch: dict[str, Tensor], side: str) -> tuple[Tensor | None, Activations]:
        """The vanilla model's logits and activations, if the method asks for any of this side."""
        looked = places(self.looks, side, "vanilla")
        if not looked and self.wanted.get(side) != "logits":
            return None, Activations()
        with ExitStack() as stack:
            reference: Any = self.reference
            if reference is None:
                reference = self.accelerator.unwrap_model(model)
                stack.enter_context(reference.disable_adapter())
                stack.callback(reference.train, reference.training)
                reference.eval()
            device = next(reference.parameters()).device
            moved = {name: value.to(device) for name, value in batch.items()}
            logits, activations = _seen(reference, looked, lambda: reference(**moved).logits)
            home = batch["input_ids"].device
            return logits.to(home), activations.map(lambda value: value.to(home))

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


def _seen(model: nn.Module, looked: list[Placement], logits: Callable[[], Tensor]) -> tuple[Tensor, Activations]:
    """Logits of a forward, and its activations at the places that are looked at, if any."""
    if not looked:
        return logits(), Activations()
    with captured(model, looked) as activations:
        found = logits()
    return found, activations


def _leaf(value: Tensor, halves: list[tuple[Tensor, Tensor]]) -> Tensor:
    """A leaf in a value's place, noted beside it; the value itself where nothing that is trained is below it."""
    if not value.requires_grad:
        return value
    leaf = value.detach().requires_grad_()
    halves.append((value, leaf))
    return leaf


@torch.no_grad()
def reference_logprobs(
    model: nn.Module, examples: Sequence[Example], batch_size: int, side: str, progress: bool
) -> Tensor:
    """Each example's summed log-probability under the vanilla model, so that it need not run in training.

    Raises `KrsError` that names the text for one that is not finite.
    """
    found = []
    device = next(model.parameters()).device
    with bar(len(examples), f"vanilla likelihood ({side})", show=progress, unit="text") as shown:
        for start in range(0, len(examples), batch_size):
            rows = examples[start : start + batch_size]
            batch = {k: v.to(device) for k, v in collate(rows).items()}
            labels = batch.pop("labels")
            logprobs = token_logprobs(model(**accepted(model, batch)).logits, labels).sum(-1).cpu()
            if not torch.isfinite(logprobs).all():
                i = start + int((~torch.isfinite(logprobs)).nonzero()[0])
                raise KrsError(
                    f"the vanilla model's logits of {side} text {i} are not finite: load it in another precision "
                    "(bf16 or fp32 where it is fp16)"
                )
            found.append(logprobs)
            shown.update(len(rows))
    return torch.cat(found)
