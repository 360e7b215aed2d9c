"""Everything that could fail at the end of a run, tried before its start."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from krs._typing import Tokenizer
from krs.errors import KrsError
from krs.extras import require
from krs.models.given import memory_needed
from krs.models.load import quiet
from krs.models.memory import free_memory
from krs.models.tokenizers import tokenizer_beside
from krs.unlearn.config import Config, EditConfig
from krs.unlearn.methods import Edit, Method, Plugin
from krs.unlearn.sides import wanted_of_vanilla

_ADAM_STATES = 2


def check_extras(made: Plugin) -> None:
    """Raise `KrsError` if a library that the method needs is not installed."""
    if isinstance(made, Edit):
        return
    require("accelerate", "unlearn", f"training ({made.name})")
    if made.config.parameters == "lora":
        require("peft", "unlearn", "parameters='lora'")


def check_memory(
    made: Plugin, located: Mapping[str, tuple[str, bool]], dtype: torch.dtype | str, device: torch.device
) -> None:
    """Raise `KrsError` if the model and what is made of it beside it will not fit on a device, before it is loaded.

    Counted are weights, gradients and AdamW's averages, and the vanilla model in fp32 where it is narrower and runs in
    every step; a batch takes more on top. Nothing is checked of one of several
    processes, which may have parts of the model only, nor where the checkpoint does not say how large it is.
    """
    whole, single = memory_needed(located, dtype), memory_needed(located, torch.float32)
    if whole is None or single is None or int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return
    numbers, free = single // 4, free_memory(device)

    def needed(**changes: Any) -> int:
        config: Any = replace(made.config, **changes)
        if isinstance(made, Edit):
            return whole + 4 * numbers
        if config.parameters == "lora":
            return 2 * whole
        states = 2 + _ADAM_STATES if config.parameters == "all" else 1  # of a part of the weights little is kept
        pure = config.precision == "bf16-pure"
        wider = 0 if pure or whole >= single or not _looks_at_vanilla(made) else single
        return whole + wider + (2 if pure else 4) * states * numbers

    if needed() <= free:
        return
    changes = [] if isinstance(made, Edit) else [{"parameters": "lora"}, {"precision": "bf16-pure"}]
    ways = [
        f"{name}={value!r} ({_gb(needed(**c))})" for c in changes for name, value in c.items() if needed(**c) <= free
    ]
    host = torch.device("cpu")
    if device.type != "cpu" and needed() <= free_memory(host):
        ways.append(f"device='cpu' ({_gb(free_memory(host))} free)")
    raise KrsError(
        f"{made.name} takes at least {_gb(needed())}: the model, and beside it a copy with what its training keeps; "
        f"{_gb(free)} are free on {device}: {', or '.join(ways) or 'take a smaller model or a larger machine'}"
    )


def _looks_at_vanilla(made: Plugin) -> bool:
    """Whether the vanilla model runs in every step."""
    assert isinstance(made, Method)
    asked = wanted_of_vanilla(made.reference, made.sides)
    return "logits" in asked.values() or type(made).looks is not Method.looks


def check_finite(model: nn.Module) -> None:
    """Raise `KrsError` for weights that are NaN or infinite."""
    for name, value in broken(model):
        raise KrsError(
            f"{name!r} of the vanilla model holds {value}, so that no loss could be computed: load it in the precision "
            "that it was made for (bf16 weights overflow in fp16), or fetch the checkpoint again"
        )


def broken(model: nn.Module) -> list[tuple[str, str]]:
    """Names of parameters and buffers that hold numbers which are not finite, and how many of which kind."""
    found = []
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        value = tensor.detach()
        if value.device.type == "meta" or not value.is_floating_point():
            continue
        if not torch.isfinite(value).all():
            nan, inf = int(value.isnan().sum()), int(value.isinf().sum())
            counts = [f"{n:,} {what}" for n, what in ((nan, "NaN"), (inf, "infinite")) if n]
            found.append((name, f"{' and '.join(counts)} of {value.numel():,} values"))
    return found


def check_saves(
    vanilla: nn.Module, tokenizer: Tokenizer, folder: Path, config: Config | EditConfig, texts: Sequence[str] = ()
) -> None:
    """Raise `KrsError` if a copy of the model could not be saved to `folder`, or its tokenizer would read otherwise.

    `texts` are read by the tokenizer, and as it is loaded from there.

    Model configuration, generation configuration and tokenizer are saved to a temporary directory; a file is written
    where the folder will be; weights that share memory and the space on the disk are looked at.
    """
    check_space(vanilla, folder, config)
    try:
        json.dumps(asdict(config))
    except TypeError as reason:
        raise KrsError(
            f"the settings cannot be written to the report as JSON ({reason}): give numbers, texts and lists of these"
        ) from None
    _check_sharing(vanilla)
    model: Any = vanilla
    parts = [("tokenizer", tokenizer), ("config", model.config)]
    parts += [("generation_config", model.generation_config)] if model.can_generate() else []
    for name, part in parts:
        try:
            with tempfile.TemporaryDirectory() as scratch, quiet():
                part.save_pretrained(scratch)
        except Exception as reason:  # noqa: BLE001 - whatever it is, it would end the run after its work
            owner = "tokenizer" if name == "tokenizer" else f"model.{name}"
            raise KrsError(
                f"{owner} cannot be saved, so that the unlearned model could not be either: "
                f"{_first_lines(reason)} {_remedy(name)}"
            ) from None
    _check_tokenizer(vanilla, tokenizer, texts)


def _check_tokenizer(vanilla: nn.Module, tokenizer: Tokenizer, texts: Sequence[str]) -> None:
    """Raise `KrsError` for a tokenizer that would be another one once it is loaded from beside the model.

    transformers loads the class that belongs to the type of some models (Qwen2), whatever was saved there.
    """
    model: Any = vanilla
    with tempfile.TemporaryDirectory() as scratch, quiet():
        model.config.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        try:
            again = tokenizer_beside(scratch, {"local_files_only": True})
        except (OSError, ValueError, ImportError, KeyError, AttributeError):
            return  # whether it can be loaded is seen when the model has been saved
    for text in texts:
        ours, theirs = (list(one(text)["input_ids"]) for one in (tokenizer, again or tokenizer))
        if ours != theirs:
            raise KrsError(
                f"the tokenizer would be another one when it is loaded from beside this {model.config.model_type} "
                f"model: {type(again).__name__} reads {text[:40]!r} as {theirs[:4]}, and this one as {ours[:4]}. Pass "
                "the one that loads beside the model, or leave output_dir out and save both yourself"
            )


def _remedy(name: str) -> str:
    return (
        "Set model.generation_config right before the run, such as model.generation_config.do_sample = True"
        if name == "generation_config"
        else f"Mend the {name} before the run, or leave output_dir out"
    )


def _first_lines(reason: Exception) -> str:
    said = " ".join(line.strip() for line in str(reason).splitlines()[:3] if line.strip()) or type(reason).__name__
    return said if said.endswith(".") else f"{said}."


def check_space(vanilla: nn.Module, folder: Path, config: Config | EditConfig) -> None:
    """Raise `KrsError` if model and checkpoints do not fit on the disk.

    Counted are the model, and with `save_steps` a checkpoint beside it, or two while a new one replaces the last.
    """
    model = sum(p.numel() * p.element_size() for p in _tensors(vanilla))
    checkpoint = 0
    if isinstance(config, Config) and config.save_steps and config.parameters != "lora":
        each = 2 if config.precision == "bf16-pure" else 4
        checkpoint = (1 + _ADAM_STATES) * each * sum(p.numel() for p in vanilla.parameters())
        written = (config.steps - 1) // config.save_steps
        checkpoint *= min(written, 2)
    needed = int(max(model + checkpoint / 2, checkpoint)) if checkpoint else model
    what = "the model and its checkpoints" if checkpoint else "the model"
    check_place(folder, f"output_dir={str(folder)!r}", what, needed, ", or set save_steps=0" if checkpoint else "")


def check_place(folder: Path, name: str, what: str, needed: int, otherwise: str = "") -> None:
    """Raise `KrsError` if a folder, which need not be there yet, cannot be written or has too little room.

    Args:
        folder: where something is going to be written.
        name: of the folder, as the message has it.
        what: is to be written.
        needed: its bytes.
        otherwise: what else can be done than to give another place.
    """
    place = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
        free = shutil.disk_usage(place).free
    except OSError as reason:
        raise KrsError(
            f"{name} cannot be written ({reason.strerror or reason}): give another place{otherwise}"
        ) from None
    if needed > free:
        raise KrsError(
            f"{name}: {what} will take {needed / 1e9:,.1f} GB, and {free / 1e9:,.1f} GB are free there: free some "
            f"space, or give another place{otherwise}"
        )


def _tensors(model: nn.Module) -> list[torch.Tensor]:
    return [*model.parameters(), *model.buffers()]


def _check_sharing(vanilla: nn.Module) -> None:
    """transformers saves no weights that share memory unless the model's class says that they are tied."""
    from transformers import modeling_utils

    find = getattr(modeling_utils, "remove_tied_weights_from_state_dict", None)
    if find is None or any(t.device.type == "meta" for t in _tensors(vanilla)):
        return
    try:
        find(vanilla.state_dict(), vanilla)
    except RuntimeError as reason:
        raise KrsError(
            f"the model has weights that share memory, which transformers cannot save: {_first_lines(reason)[:300]} "
            "Give each layer weights of its own (copy.deepcopy the shared modules), or leave output_dir out"
        ) from None


def _gb(size: int) -> str:
    return f"{size / 1e9:.3g} GB"
