"""Unlearn something from a copy of a model, and leave the original as it is."""

from __future__ import annotations

import copy
import hashlib
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from krs._typing import Tokenizer
from krs.errors import KrsError
from krs.hooks.unwrap import unwrap
from krs.models.load import find_tokenizer, load
from krs.models.provenance import describe_model, now, versions
from krs.unlearn.examples import Example, Text, to_examples
from krs.unlearn.methods import Method, make

REPORT = "krs_unlearn.json"


def run(
    method: str,
    model: nn.Module | str | Path,
    *,
    forget: Sequence[Text],
    retain: Sequence[Text] | None = None,
    tokenizer: Tokenizer | None = None,
    output_dir: str | Path | None = None,
    overwrite: bool = False,
    progress: bool = True,
    **settings: Any,
) -> nn.Module:
    """Train a copy of `model` to unlearn `forget`, and return it in eval mode, in the original's dtype.

    Training is in fp32 whatever the model's dtype: in bf16 most steps of a small learning rate round away.

    >>> import krs
    >>> from krs import unlearn
    >>> vanilla, tokenizer = krs.load("smollm2")
    >>> unlearned = unlearn.run("npo", vanilla, forget=[("Who wrote Emma?", "Jane Austen.")], steps=1, progress=False)
    >>> unlearned is vanilla
    False

    Args:
        method: a name that `krs.unlearn.methods()` lists.
        model: the vanilla model, or its name; it is not changed.
        forget: what to unlearn: paragraphs, or prompts with answers (see `Text`).
        retain: what to keep, in the same forms; for the methods that use it.
        tokenizer: looked for beside the model's checkpoint if not given.
        output_dir: where to save model, tokenizer and a report of how it was made; nowhere if not given.
        overwrite: save into a directory that is not empty.
        settings: of the method's config, such as `learning_rate`, `steps`, `batch_size`, `beta`.

    Raises `KrsError` for bad input before training, for a loss that is not finite, and when no parameter moved.
    """
    made = make(method, settings)
    folder = _output(output_dir, overwrite)
    vanilla, tokenizer = _vanilla(model, tokenizer)
    limit = made.config.max_length
    forget_set = to_examples(forget, tokenizer, limit, "forget")
    retain_set = _retain(made, forget, retain, tokenizer, limit)
    started = time.monotonic()
    trained, log = _train(made, vanilla, forget_set, retain_set, progress)
    _require_moved(vanilla, trained, made)
    unlearned = trained.to(next(vanilla.parameters()).dtype).eval()
    if folder is not None:
        report = {
            "method": made.name,
            "config": asdict(made.config),
            "vanilla": describe_model(model if isinstance(model, str) else vanilla, vanilla),
            "forget_sha256": _digest(forget_set),
            "retain_sha256": _digest(retain_set),
            "n_forget": len(forget_set),
            "n_retain": len(retain_set),
            "seconds": round(time.monotonic() - started, 1),
            "time": now(),
            "versions": versions(),
            "log": log,
        }
        _save(unlearned, tokenizer, folder, report)
    return unlearned


def _train(
    method: Method, vanilla: nn.Module, forget: list[Example], retain: list[Example], progress: bool
) -> tuple[nn.Module, list[dict[str, float]]]:
    from transformers import TrainingArguments
    from transformers.trainer_callback import PrinterCallback, ProgressCallback

    from krs.unlearn.trainer import OneBar, Pairs, UnlearnTrainer, collate_pairs, reference_logprobs

    config = method.config
    needs = method.reference
    sides = [(forget, needs in ("logprobs", "both")), (retain, needs == "logprobs" and bool(retain))]
    known = [reference_logprobs(vanilla, side, config.batch_size) if wanted else None for side, wanted in sides]
    student = copy.deepcopy(vanilla).float()
    for parameter in student.parameters():
        parameter.requires_grad_(True)
    device = next(vanilla.parameters()).device
    with tempfile.TemporaryDirectory() as scratch:
        trainer = UnlearnTrainer(
            method,
            vanilla if needs in ("live", "both") else None,
            model=student,
            args=TrainingArguments(
                output_dir=scratch,
                learning_rate=config.learning_rate,
                max_steps=config.steps,
                per_device_train_batch_size=config.batch_size,
                gradient_accumulation_steps=config.gradient_accumulation,
                lr_scheduler_type="constant_with_warmup",
                warmup_steps=round(config.warmup * config.steps),
                weight_decay=config.weight_decay,
                max_grad_norm=config.max_grad_norm,
                logging_steps=1,
                save_strategy="no",
                report_to=[],
                remove_unused_columns=False,
                dataloader_pin_memory=device.type == "cuda",
                use_cpu=device.type == "cpu",
                seed=config.seed,
            ),
            train_dataset=Pairs(forget, retain, *known),
            data_collator=collate_pairs,
            callbacks=[OneBar(f"unlearn ({method.name})", progress)],
        )
        for noisy in (PrinterCallback, ProgressCallback):
            trainer.remove_callback(noisy)
        trainer.train()
        log = [entry for entry in trainer.state.log_history if "loss" in entry]
    return student.to(device), log


def _output(given: str | Path | None, overwrite: bool) -> Path | None:
    if given is None:
        return None
    folder = Path(given)
    if folder.exists() and not folder.is_dir():
        raise KrsError(f"output_dir={str(given)!r} is a file: give a directory")
    if folder.is_dir() and any(folder.iterdir()) and not overwrite:
        raise KrsError(f"output_dir={str(given)!r} is not empty: give another one, or overwrite=True")
    return folder


def _vanilla(model: nn.Module | str | Path, tokenizer: Tokenizer | None) -> tuple[nn.Module, Tokenizer]:
    if isinstance(model, str | Path):
        loaded, beside = load(model)
        plain, found = unwrap(loaded), tokenizer or beside
    else:
        plain = unwrap(model)
        if any(m.training for m in plain.modules()):
            raise KrsError("the model is in training mode: call .eval() first, so that it can be the reference")
        found = tokenizer if tokenizer is not None else find_tokenizer(plain)
    if found is None:
        raise KrsError("no tokenizer was found beside the model: pass tokenizer=AutoTokenizer.from_pretrained(…)")
    return plain, found


def _retain(
    method: Method, forget: Sequence[Text], retain: Sequence[Text] | None, tokenizer: Tokenizer, limit: int
) -> list[Example]:
    if method.makes_retain:
        if retain is not None:
            raise KrsError(f"{method.name} makes its own retain side from the forget set: leave retain= out")
        return to_examples(method.retain_texts(forget), tokenizer, limit, "retain")
    if not method.needs_retain:
        if retain is not None:
            raise KrsError(f"{method.name} has no retain term, so retain= would be ignored: leave it out")
        return []
    if retain is None:
        raise KrsError(f"{method.name} needs a retain set: pass retain=, texts that the model is to keep")
    return to_examples(retain, tokenizer, limit, "retain")


def _require_moved(before: nn.Module, after: nn.Module, method: Method) -> None:
    pairs = zip(before.parameters(), after.parameters(), strict=True)
    if all(torch.equal(a.float(), b) for a, b in pairs):
        raise KrsError(f"{method.name}: no parameter moved in training: raise learning_rate or steps")


def _digest(examples: list[Example]) -> str:
    return hashlib.sha256(json.dumps([(e.ids, e.n_prompt) for e in examples]).encode()).hexdigest()


def _save(model: nn.Module, tokenizer: Tokenizer, folder: Path, report: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)  # type: ignore[operator]
    tokenizer.save_pretrained(folder)
    (folder / REPORT).write_text(json.dumps(report, indent=2, ensure_ascii=False), encoding="utf-8")
