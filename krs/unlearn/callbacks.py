"""What goes on beside training: the bar, stopping at a target, stopping when the user says so, checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from transformers import TrainerCallback, TrainingArguments

from krs.errors import KrsError
from krs.generation.fits import context_of
from krs.generation.forward import accepted
from krs.generation.greedy import eos_ids, greedy
from krs.hooks.unwrap import unwrap
from krs.metrics.bleu import bleu
from krs.progress import bar
from krs.unlearn.config import Config
from krs.unlearn.examples import Example, collate
from krs.unlearn.interrupt import Interrupt
from krs.unlearn.losses import live_tokens, token_logprobs

_N_TOKENS = 30


class OneBar(TrainerCallback):
    """One progress bar that shows the terms of the loss, and nothing printed beside it."""

    def __init__(self, doing: str, show: bool) -> None:
        self.doing, self.show = doing, show
        self.shown: Any = None

    def on_train_begin(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """Open the bar, at the step that is gone on from."""
        show = self.show and state.is_world_process_zero
        self.shown = bar(state.max_steps, self.doing, show=show, unit="step", done=state.global_step)

    def on_log(self, args: TrainingArguments, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """One step further, which is logged with the terms of its loss."""
        if "loss" not in (logs or {}):
            return
        if terms := {k.removeprefix("loss_"): f"{v:z.3f}" for k, v in logs.items() if k.startswith("loss_")}:
            self.shown.set_postfix({"loss": f"{logs['loss']:z.3f}"} | (terms if len(terms) > 1 else {}))
        self.shown.update()

    def on_train_end(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """Close the bar."""
        self.shown.close()


class SaveEvery(TrainerCallback):
    """A checkpoint every so many steps, but none at the end, where the model itself is saved."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_step_end(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """Ask for a checkpoint when it is time."""
        if self.steps and state.global_step % self.steps == 0 and not control.should_training_stop:
            control.should_save = True


class StopAtTarget(TrainerCallback):
    """Stop once the forget set is as unlikely, or its answers as different, as was asked for."""

    def __init__(
        self, config: Config, forget: Sequence[Example], vanilla: nn.Module, decoded: Callable[[Sequence[int]], str]
    ) -> None:
        self.config, self.forget, self.decoded = config, forget, decoded
        self.asked = [e for e in forget if e.n_prompt]
        self.reached: str | None = None
        self.ends = eos_ids(vanilla)
        wanted = [e.ids[e.n_prompt :][:_N_TOKENS] for e in self.asked]
        self.wanted = [(ids, len(ids) if ids[-1] not in self.ends else _N_TOKENS) for ids in wanted]
        if config.stop_bleu is not None:
            self._check_bleu(context_of(vanilla))

    def on_step_end(self, args: TrainingArguments, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Measure, when it is time, and stop at the target."""
        config = self.config
        if state.global_step % config.check_every or (config.stop_forget_nll is None and config.stop_bleu is None):
            return
        found: dict[str, float] = {"step": state.global_step}
        training = model.training
        model.eval()
        if config.stop_forget_nll is not None:
            found["forget_nll"] = mean_nll(model, self.forget, config.batch_size)
            if found["forget_nll"] >= config.stop_forget_nll:
                self.reached = f"forget NLL {found['forget_nll']:.3f} >= {config.stop_forget_nll}"
        if config.stop_bleu is not None:
            found["forget_bleu"] = self._bleu(model)
            if found["forget_bleu"] <= config.stop_bleu:
                self.reached = f"forget BLEU {found['forget_bleu']:.2f} <= {config.stop_bleu}"
        model.train(training)
        state.log_history.append(found)  # which checkpoints keep
        if in_any_process(self.reached is not None, args.device):
            control.should_training_stop = True

    def _bleu(self, model: nn.Module) -> float:
        """A mean over answers; of one that is cut off, with as many tokens as there are of it."""
        plain: Any = unwrap(model)
        prompts = tuple(e.ids[: e.n_prompt] for e in self.asked)
        said = greedy(plain, prompts, max(n for _, n in self.wanted), progress=False, eos=self.ends)
        pairs = zip(self.wanted, said, strict=True)
        return sum(bleu(self.decoded(ids), self.decoded(s[:n])) for (ids, n), s in pairs) / len(said)

    def _check_bleu(self, context: int | None) -> None:
        if not self.asked:
            raise KrsError("stop_bleu= compares answers, and no forget text has a prompt: use stop_forget_nll=")
        longest = max(e.n_prompt for e in self.asked)
        many = max(n for _, n in self.wanted)
        if context is not None and longest + many > context:
            raise KrsError(
                f"stop_bleu= has answers of up to {many} tokens, and a forget prompt of {longest} tokens leaves no "
                f"room for one in the model's context of {context}: shorten it, or use stop_forget_nll="
            )


class StopWhenAsked(TrainerCallback):
    """Ctrl-C lets the step end, and a checkpoint is written, unless training ends there anyway."""

    def __init__(self, interrupt: Interrupt) -> None:
        self.interrupt = interrupt

    def on_train_begin(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """From here on there is something to lose."""
        self.interrupt.waits = True

    def on_step_end(self, args: TrainingArguments, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop here if the user asked for it."""
        heard = self.interrupt
        heard.step = state.global_step
        heard.asked = in_any_process(heard.asked, args.device)
        if heard.asked and not control.should_training_stop:
            heard.stopped = True
            control.should_training_stop = True
            control.should_save = heard.saves


def in_any_process(flag: bool, device: torch.device) -> bool:
    """Whether it is so in any of the processes that train together, so that all of them stop after the same step."""
    if not dist.is_available() or not dist.is_initialized():
        return flag
    raised = torch.tensor(float(flag), device=device)
    dist.all_reduce(raised, op=dist.ReduceOp.MAX)
    return bool(raised)


@torch.no_grad()
def mean_nll(model: nn.Module, examples: Sequence[Example], batch_size: int) -> float:
    """The mean loss of a set, in nats a live token."""
    total, count = 0.0, 0
    device = next(model.parameters()).device
    for start in range(0, len(examples), batch_size):
        batch = {k: v.to(device) for k, v in collate(examples[start : start + batch_size]).items()}
        labels = batch.pop("labels")
        total -= float(token_logprobs(model(**accepted(model, batch)).logits, labels).sum())
        count += int(live_tokens(labels).sum())
    return total / count
