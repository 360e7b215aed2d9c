"""The finished model on the disk: all of it or nothing, and what becomes of it when it cannot be saved."""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Iterable, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from torch import nn

from krs._typing import Tokenizer
from krs.errors import KrsError
from krs.models.lineage import REPORT
from krs.models.load import load, quiet
from krs.prompts import Ids
from krs.unlearn import checkpoints
from krs.unlearn.verify import check_saved
from krs.writing import replacing, write_text

ADAPTER = "adapter"
_STATE = "state.safetensors"
_OF_ANOTHER_MODEL = (
    "*.safetensors",
    "*.safetensors.index.json",
    "pytorch_model*.bin",
    "pytorch_model*.bin.index.json",
    "adapter_config.json",
    "adapter_model.bin",
)
"""What would be loaded in the place of the new model, or beside it."""


def save(
    model: nn.Module, tokenizer: Tokenizer, folder: Path, report: dict[str, Any], texts: Sequence[Ids] = ()
) -> None:
    """Save model, tokenizer and report; nothing of them is at its place before all of them have been written.

    What was written is loaded back and compared with the model, on `texts` (see `check_saved`).

    Raises `KrsError` when that fails. The model is then the exception's `partial`, and its weights are kept in
    `folder/checkpoints/`, where that can be done: `kept` finds them there.
    """
    stage = folder / checkpoints.FOLDER / checkpoints.FINISHED
    try:
        shutil.rmtree(stage, ignore_errors=True)
        stage.mkdir(parents=True)
        with quiet():
            model.save_pretrained(stage)  # type: ignore[operator]
        tokenizer.save_pretrained(stage)
        report["saved"] = check_saved(model, stage, texts)
        said = json.dumps(report, indent=2, ensure_ascii=False)
        write_text(stage / REPORT, said)
        _share_permissions([stage, folder / checkpoints.FOLDER / ADAPTER], stage / REPORT)
        _move(stage, folder)
    except Exception as reason:
        raise _lost(model, folder, report, reason) from reason


def kept(folder: Path, vanilla: nn.Module) -> tuple[nn.Module, dict[str, Any]] | None:
    """The model that an earlier call finished and did not save to its end, and its report, or `None`."""
    from safetensors.torch import load_file

    stage = folder / checkpoints.FOLDER / checkpoints.FINISHED
    if report := checkpoints.read_json(stage / REPORT) if checkpoints.moving(folder) else {}:
        return _like(vanilla, load(_gathered(stage, folder))[0]), report
    place = folder / checkpoints.FOLDER / checkpoints.KEPT
    report = checkpoints.read_json(place / REPORT)
    if not report:
        return None
    aliases = report.pop("aliases")
    state = load_file(place / _STATE)
    model = copy.deepcopy(vanilla)
    model.load_state_dict(state | {name: state[first] for name, first in aliases.items()})
    return model, report


def _lost(model: nn.Module, folder: Path, report: dict[str, Any], reason: Exception) -> KrsError:
    said = str(reason).strip().splitlines()[0] if str(reason).strip() else type(reason).__name__
    beside = _keep(model, folder, report)
    how = (
        f"Its weights are kept in {str(beside)!r}: mend the cause, and the same call saves them without training again"
        if beside
        else "Its weights could not be written beside it either: save them yourself, error.partial.save_pretrained(…)"
    )
    error = KrsError(f"the model is unlearned, but saving it to {str(folder)!r} failed ({said}). {how}")
    error.partial = model
    return error


def _keep(model: nn.Module, folder: Path, report: dict[str, Any]) -> Path | None:
    """The bare weights, which need no configuration; where they are, or `None` if that fails too."""
    from safetensors.torch import save_file

    place = folder / checkpoints.FOLDER / checkpoints.KEPT
    first: dict[tuple[Any, ...], str] = {}
    aliases: dict[str, str] = {}
    state: dict[str, torch.Tensor] = {}
    try:
        shutil.rmtree(folder / checkpoints.FOLDER / checkpoints.FINISHED, ignore_errors=True)
        place.mkdir(parents=True, exist_ok=True)
        for name, value in model.state_dict().items():
            where = (value.data_ptr(), tuple(value.shape), value.stride(), value.dtype)
            if value.numel() and where in first:
                aliases[name] = first[where]
            else:
                first[where] = name
                state[name] = value.detach().clone().contiguous()
        with replacing(place / _STATE) as unfinished:
            save_file(state, unfinished)
        said = json.dumps(report | {"aliases": aliases}, indent=2, default=str)
        write_text(place / REPORT, said)  # last, so that it is there only if all of it is
    except Exception:  # noqa: BLE001 - the caller says so
        shutil.rmtree(place, ignore_errors=True)
        return None
    return place


def _move(stage: Path, folder: Path) -> None:
    """Put what was written to its place, the report last; what is on its way is noted, for a call that is killed."""
    adapter = folder / checkpoints.FOLDER / ADAPTER
    names = sorted(p.name for p in stage.iterdir() if p.name != REPORT)
    names += [ADAPTER] if adapter.exists() else []
    checkpoints.note_moving(folder, [*names, REPORT])
    for old in folder.iterdir():
        if old.name not in names and any(fnmatch(old.name, pattern) for pattern in _OF_ANOTHER_MODEL):
            old.unlink()
    if ADAPTER not in names and (folder / ADAPTER / "adapter_config.json").is_file():
        shutil.rmtree(folder / ADAPTER, ignore_errors=True)
    _replace_all([adapter if name == ADAPTER else stage / name for name in names], folder)
    os.replace(stage / REPORT, folder / REPORT)


def _share_permissions(folders: Iterable[Path], like: Path) -> None:
    """Give every file those of one that follows the user's umask; safetensors are written for their owner alone."""
    for file in (file for folder in folders for file in folder.rglob("*") if file.is_file()):
        file.chmod(like.stat().st_mode & 0o777)


def _gathered(stage: Path, folder: Path) -> Path:
    """All files of a model of which some are at their place already, at one place: back where they were written."""
    for name in checkpoints.moving(folder):
        if name not in (REPORT, ADAPTER) and (folder / name).exists() and not (stage / name).exists():
            os.replace(folder / name, stage / name)
    return stage


def _like(vanilla: nn.Module, model: nn.Module) -> nn.Module:
    first, flags = next(vanilla.parameters()), {n: p.requires_grad for n, p in vanilla.named_parameters()}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(flags[name])
    return model.to(device=first.device, dtype=first.dtype)


def _replace_all(files: Iterable[Path], folder: Path) -> None:
    for file in files:
        target = folder / file.name
        if target.is_dir():
            shutil.rmtree(target)
        os.replace(file, target)
