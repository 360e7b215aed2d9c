"""Results as files: arrays and a JSON header in one safetensors file, written all at once."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from krs.errors import KrsError
from krs.hooks.points import Setting, setting
from krs.restore.losses import Losses
from krs.restore.plan import Plan
from krs.restore.windows import Window

if TYPE_CHECKING:
    from krs.restore.result import SweepResult

_FORMAT = 1
_ARRAYS = ("restored", "baseline", "power", "mask")


def save(result: Any, path: Path, overwrite: bool) -> Path:
    """Write a result; an existing file is replaced only if asked for, and then in one step."""
    from safetensors.numpy import save_file

    if path.exists() and not overwrite:
        raise KrsError(f"{str(path)!r} exists already: choose another name, or save(path, overwrite=True)")
    header = {
        "format": _FORMAT,
        "settings": [s.name for s in result.plan.settings],
        "windows": [asdict(w) for w in result.plan.windows],
        "n_layers": result.plan.n_layers,
        "positions": result.plan.positions,
        "scoring": result.scoring,
        "prompts": result.prompts,
        "answers": result.answers,
        "provenance": result.provenance,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        arrays = {name: getattr(result.losses, name) for name in _ARRAYS}
        save_file(arrays, unfinished, metadata={"krs": json.dumps(header, ensure_ascii=False)})
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return path


def load_result(path: str | Path) -> SweepResult:
    """Read what `SweepResult.save` wrote. Nothing in the file is executed.

    >>> load_result("nowhere.krs")
    Traceback (most recent call last):
    krs.errors.KrsError: no file 'nowhere.krs'

    Raises `KrsError` for a missing file and for one that is not a saved result.
    """
    from safetensors import SafetensorError, safe_open

    from krs.restore.result import SweepResult

    if not Path(path).is_file():
        raise KrsError(f"no file {str(path)!r}")
    try:
        with safe_open(path, framework="numpy") as file:
            header = json.loads((file.metadata() or {})["krs"])
            arrays = {name: file.get_tensor(name) for name in _ARRAYS}
            losses = Losses(**arrays, donor=np.zeros_like(arrays["baseline"]))
    except (SafetensorError, KeyError, json.JSONDecodeError) as reason:
        raise KrsError(f"{str(path)!r} is not a result that krs saved ({reason})") from None
    if header["format"] > _FORMAT:
        raise KrsError(f"{str(path)!r} was saved by a newer krs (format {header['format']}): update krs to read it")
    windows = tuple(Window(w["name"], tuple(w["layers"])) for w in header["windows"])
    settings = tuple(_setting(name) for name in header["settings"])
    positions = tuple(header["positions"]) if isinstance(header["positions"], list) else header["positions"]
    return SweepResult(
        plan=Plan(settings, windows, header["n_layers"], positions),
        losses=losses,
        scoring=header["scoring"],
        prompts=tuple(header["prompts"]),
        answers=tuple(header["answers"]),
        provenance=header["provenance"],
    )


def _setting(name: str) -> Setting:
    try:
        return setting(name)
    except KrsError as reason:
        raise KrsError(f"this result has a setting that is not known here. {reason}") from None
