"""Training a copy of the model with `transformers.Trainer`."""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback
from transformers.training_args import ParallelMode

from krs.errors import KrsError, KrsWarning
from krs.models.load import quiet
from krs.progress import going_on
from krs.unlearn import checkpoints
from krs.unlearn.arguments import Arguments
from krs.unlearn.callbacks import OneBar, SaveEvery, StopAtTarget, StopWhenAsked
from krs.unlearn.examples import Example
from krs.unlearn.interrupt import Interrupt
from krs.unlearn.methods import Method
from krs.unlearn.saving import ADAPTER
from krs.unlearn.sides import Look, wanted_of_vanilla
from krs.unlearn.student import (
    depth,
    finish,
    make_reference,
    make_student,
    survives_rounding,
    warn_of_rounding,
)
from krs.unlearn.trainer import Pairs, UnlearnTrainer, collate_pairs, reference_logprobs
from krs.unlearn.watching import Watching, watched
from krs.wording import counted

_NOT_TAKEN = {
    "auto_find_batch_size": "the report would say another batch size than the run had",
    "ignore_data_skip": "a run that goes on would see other texts than one that was not interrupted",
    "label_smoothing_factor": "what is minimised is the method's loss, which would pass over it",
    "load_best_model_at_end": "nothing is evaluated on the way, so that it would be passed over",
    "num_train_epochs": "steps= says how long a run is",
    "resume_from_checkpoint": "the same call goes on from its own checkpoints",
    "save_only_model": "a run could not go on from such a checkpoint with the optimiser that it had",
}
"""`TrainingArguments` that would do nothing, or something else than they say."""


def train(
    method: Method,
    vanilla: nn.Module,
    sides: dict[str, list[Example]],
    *,
    decoded: Callable[[Sequence[int]], str],
    folder: Path | None,
    resume: Path | None,
    options: dict[str, Any],
    progress: bool,
    interrupt: Interrupt | None = None,
    watching: Watching | None = None,
) -> tuple[nn.Module, list[dict[str, Any]], dict[str, Any]]:
    """The trained copy, the log of every step, and how training ended.

    Args:
        method: whose loss is minimised.
        vanilla: what is copied; the reference.
        sides: sequences of each of its sides.
        decoded: text of token ids, for `stop_bleu`.
        folder: where checkpoints go.
        resume: the checkpoint to go on from.
        options: further `TrainingArguments`.
        progress: show a bar.
        interrupt: what Ctrl-C does.
        watching: what looks at the copy while it trains.
    """
    config, n_layers = method.config, depth(vanilla)
    looks, layers = tuple(method.looks(n_layers)), method.trained_layers(n_layers)
    interrupt = interrupt or Interrupt(saves=False)
    stop = StopAtTarget(config, sides["forget"], vanilla, decoded)
    callbacks: list[TrainerCallback] = [
        OneBar(f"unlearn ({method.name})", progress),
        stop,
        SaveEvery(config.save_steps),
    ]
    if watching is not None:
        callbacks.append(watching)
    pairs = Pairs(sides)

    def fresh() -> nn.Module:
        return make_student(vanilla, config, layers)

    with tempfile.TemporaryDirectory() as scratch:
        place = folder / checkpoints.FOLDER if folder else Path(scratch)
        every = [*callbacks, StopWhenAsked(interrupt)]
        arguments = _arguments(method, vanilla, place, options)
        reference = _reference(method, looks, vanilla)
        trainer = _trainer(method, looks, reference, fresh(), pairs, arguments, every)
        for side, wanted in trainer.wanted.items():
            if wanted == "logprob":
                aloud = progress and trainer.is_world_process_zero()
                pairs.ref_logprob[side] = reference_logprobs(reference, sides[side], config.batch_size, side, aloud)
        # fp16 weights may overflow where their copy does not
        if reference is not vanilla and next(vanilla.parameters()).dtype == torch.float16:
            reference_logprobs(vanilla, sides["forget"], config.batch_size, "forget", False)
        del reference  # which the trainer has, if it runs in every step
        if resume is not None:
            reached = int(resume.name.rpartition("-")[2])
            going_on({"step": (reached, config.steps)}, resume, show=progress and trainer.is_world_process_zero())
        try:
            with quiet():
                trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
        except ImportError as reason:  # of what an option needs
            raise KrsError(f"trainer=: {reason}") from None
        interrupt.unsaved = trainer.unsaved
        trained = None if interrupt.stopped and interrupt.unsaved is None else trainer.gathered(fresh)
        interrupt.raise_if_stopped(lambda: None if trained is None else finish(trained, vanilla, method.name))
    log = [entry for entry in trainer.state.log_history if "loss" in entry]
    if trained is None:
        return copy.deepcopy(vanilla), log, {}
    if config.parameters == "lora" and folder is not None and trainer.is_world_process_zero():
        trained.save_pretrained(folder / checkpoints.FOLDER / ADAPTER)  # type: ignore[operator]
    precision = trainer.accelerator.mixed_precision
    survives = survives_rounding(trained, vanilla)
    finished = finish(trained, vanilla, method.name)
    if trainer.is_world_process_zero():
        _warn_of_missed(stop, watching, trainer.state.global_step)
        warn_of_rounding(method.name, survives, next(vanilla.parameters()).dtype)
    ended = {
        "steps": trainer.state.global_step,
        "stopped": stop.reached or (watching.reached if watching is not None else None),
        "targets": [e for e in trainer.state.log_history if e.keys() & {"forget_nll", "forget_bleu"}],
        **({"watched": watched(trainer.state.log_history)} if watching is not None else {}),
        "mixed_precision": None if precision == "no" else precision,
        "trainer": checkpoints.launched(options).get("trainer", {}),
        "processes": trainer.accelerator.num_processes,
        "trained_layers": None if layers is None else list(layers),
        "survives_rounding": survives,
    }
    return finished, log, ended


def _warn_of_missed(stop: StopAtTarget, watching: Watching | None, steps: int) -> None:
    """Say that training ended without what it was to stop at: the model is weaker than was asked for."""
    missed = {} if watching is None or watching.stop is None else {"stop_when": str(watching.stop)}
    missed |= {
        name: value for name in ("stop_forget_nll", "stop_bleu") if (value := getattr(stop.config, name)) is not None
    }
    if missed and not stop.reached and not (watching is not None and watching.reached):
        told = " and ".join(f"{name}={value!r}" for name, value in missed.items())
        warnings.warn(
            f"{told} was not reached in {counted(steps, 'step')}: training ended all the same; give more steps=, or a "
            "higher learning_rate=",
            KrsWarning,
            stacklevel=2,
        )


def _reference(method: Method, looks: tuple[Look, ...], vanilla: nn.Module) -> nn.Module:
    """What the method knows of the vanilla model comes from this one."""
    asked = wanted_of_vanilla(method.reference, method.sides) or any(look.of == "vanilla" for look in looks)
    return make_reference(vanilla, method.config) if asked else vanilla


def _trainer(
    method: Method,
    looks: tuple[Look, ...],
    reference: nn.Module,
    student: nn.Module,
    pairs: Pairs,
    arguments: Arguments,
    callbacks: list[TrainerCallback],
) -> UnlearnTrainer:
    """The trainer; raises `KrsError` for options that it does not take."""
    wanted = wanted_of_vanilla(method.reference, method.sides)
    live = "logits" in wanted.values() or any(look.of == "vanilla" for look in looks)
    try:
        trainer = UnlearnTrainer(
            method,
            reference if live and method.config.parameters != "lora" else None,
            looks,
            model=student,
            args=arguments,
            train_dataset=pairs,
            data_collator=collate_pairs,
            callbacks=callbacks,
        )
    except (ValueError, ImportError) as reason:
        raise reason if isinstance(reason, KrsError) else KrsError(f"trainer=: {reason}") from None
    trainer.remove_callback(PrinterCallback)
    return trainer


def _arguments(method: Method, vanilla: nn.Module, place: Path, more: dict[str, Any]) -> Arguments:
    config = method.config
    device = next(vanilla.parameters()).device
    ours: dict[str, Any] = {
        "output_dir": str(place),
        "learning_rate": config.learning_rate,
        "max_steps": config.steps,
        "per_device_train_batch_size": config.batch_size,
        "gradient_accumulation_steps": config.gradient_accumulation,
        "lr_scheduler_type": "constant_with_warmup",
        "warmup_steps": round(config.warmup * config.steps),
        "weight_decay": config.weight_decay,
        "max_grad_norm": config.max_grad_norm,
        "logging_strategy": "steps",
        "logging_steps": 1,
        "save_strategy": "no",
        "remove_unused_columns": False,
        "disable_tqdm": True,
        "seed": config.seed,
    }
    if taken := sorted((ours.keys() | {"use_cpu"}) & more.keys()):
        raise KrsError(f"trainer={{{taken[0]!r}: …}}: krs sets this itself: use the method's own settings")
    if refused := sorted(_NOT_TAKEN.keys() & more.keys()):
        raise KrsError(f"trainer={{{refused[0]!r}: …}} is not taken, for {_NOT_TAKEN[refused[0]]}: leave it out")
    pinned: dict[str, Any] = {"dataloader_pin_memory": device.type == "cuda", "report_to": [], "save_total_limit": 1}
    try:
        made = Arguments(device, **(pinned | more | ours))
    except (TypeError, ValueError, ImportError) as reason:
        raise KrsError(f"trainer=: transformers.TrainingArguments does not take this: {reason}") from None
    if made.train_sampling_strategy == "group_by_length":
        raise KrsError(
            "trainer={'train_sampling_strategy': 'group_by_length'}: a forget and a retain text have no one length"
        )
    if made.fsdp and made.parallel_mode != ParallelMode.DISTRIBUTED:
        raise KrsError("trainer={'fsdp': …} divides a model among several processes: start them with accelerate launch")
    return made
