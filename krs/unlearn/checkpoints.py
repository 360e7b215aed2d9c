"""Where a run is written, and whether what lies there already is the beginning of the same run."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from krs.errors import KrsError
from krs.models.provenance import as_json
from krs.writing import write_text

FOLDER = "checkpoints"
FINISHED = "finished"
"""The model as it is saved, before it is at its place."""
KEPT = "kept"
"""The weights of a finished model that could not be saved."""
_MOVING = "krs_moving.json"
_RECIPE = "krs_recipe.json"
_STATE = "trainer_state.json"
_NO_NUMBERS = {
    *("report_to", "run_name", "project", "log_level", "log_level_replica", "logging_first_step", "save_total_limit"),
    *("hub_token", "hub_model_id", "hub_strategy", "hub_private_repo", "hub_always_push", "hub_revision"),
    *("dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers", "dataloader_prefetch_factor"),
    *("push_to_hub", "disable_tqdm", "skip_memory_metrics", "torch_empty_cache_steps", "ddp_timeout"),
}
"""`TrainingArguments` that change no weight; whatever is not here may."""


def output(given: str | Path | None, overwrite: bool) -> Path | None:
    """The output directory; raises `KrsError` for a file, and for a directory that holds more than checkpoints."""
    if given is None:
        return None
    folder = Path(given)
    if folder.exists() and not folder.is_dir():
        raise KrsError(f"output_dir={str(given)!r} is a file: give a directory")
    inside = {p.name for p in folder.iterdir()} if folder.is_dir() else set()
    if inside - {FOLDER, *moving(folder)} and not overwrite:
        raise KrsError(f"output_dir={str(given)!r} is not empty: give another one, or overwrite=True")
    return folder


def launched(trainer: Mapping[str, Any]) -> dict[str, Any]:
    """How a run was started, as far as its weights may depend on it; nothing of what is as usual.

    >>> launched({"optim": "sgd", "report_to": "wandb"})
    {'trainer': {'optim': 'sgd'}}
    """
    options = {name: as_json(value) for name, value in trainer.items() if name not in _NO_NUMBERS}
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    found = {"trainer": (options, {}), "processes": (processes, 1), "mixed precision": (precision, "no")}
    return {name: value for name, (value, usual) in found.items() if value != usual}


def refuse_another(folder: Path, known: dict[str, Any]) -> None:
    """Raise `KrsError` for checkpoints of another run, by what of its recipe is known before a model is loaded."""
    place = folder / FOLDER
    theirs = read_json(place / _RECIPE)
    if _has_work(place) and (other := _differing({k: v for k, v in theirs.items() if k in known}, known)):
        raise _another(place, other)


def begin(folder: Path, recipe: dict[str, Any], overwrite: bool, main: bool = True) -> Path | None:
    """Note what the run is made of; returns the newest checkpoint of the same run, if there is one.

    Of several processes each looks, and only the main one writes or refuses.

    Raises `KrsError` for checkpoints of another run (another model, other texts or settings).
    """
    place = folder / FOLDER
    mark = place / _RECIPE
    differing: list[str] = []
    there = place.is_dir() and any(place.iterdir()) and (_has_work(place) or not mark.exists())
    if there:
        differing = _differing(read_json(mark), recipe)
        if not differing:
            return newest(folder)
    if not main:
        return None
    if there and not overwrite:
        raise _another(place, differing)
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True, exist_ok=True)
    write_text(mark, json.dumps(recipe, indent=2))
    return None


def _another(place: Path, differing: list[str]) -> KrsError:
    return KrsError(
        f"{str(place)!r} holds checkpoints of another run; {', '.join(differing)} differ: give another "
        "output_dir, or overwrite=True to begin anew"
    )


def _differing(theirs: dict[str, Any], recipe: dict[str, Any]) -> list[str]:
    ours = json.loads(json.dumps(recipe))
    names = ours.keys() | theirs.keys()
    return sorted(_named(k, theirs.get(k), ours.get(k)) for k in names if ours.get(k) != theirs.get(k))


def _named(what: str, theirs: Any, ours: Any) -> str:
    """What differs; of settings and versions, which."""
    if what == "trainer":
        theirs, ours = theirs or {}, ours or {}
    if what not in ("settings", "versions", "trainer") or not isinstance(theirs, dict):
        return what
    names = [n for n in ours.keys() | theirs.keys() if ours.get(n) != theirs.get(n)]
    return " and ".join(f"{n} ({theirs.get(n)!r} there, {ours.get(n)!r} here)" for n in sorted(names))


def newest(folder: Path) -> Path | None:
    """The latest checkpoint that was written to its end (the trainer's state is written last)."""
    found = [p for p in (folder / FOLDER).glob("checkpoint-*") if read_json(p / _STATE)]
    return max(found, key=lambda p: int(p.name.rpartition("-")[2]), default=None)


def end(folder: Path) -> None:
    """The run is complete: its checkpoints are not needed any more."""
    shutil.rmtree(folder / FOLDER, ignore_errors=True)


@contextmanager
def tidied(folder: Path, main: bool = True) -> Iterator[None]:
    """A run that fails in here leaves nothing behind, unless there is something to go on from."""
    new = not folder.exists()
    try:
        yield
    except BaseException:
        if main and (folder / FOLDER / _RECIPE).exists() and not _has_work(folder / FOLDER):
            end(folder)
        if main and new and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
        raise


def note_moving(folder: Path, names: list[str]) -> None:
    """Note which files of the finished model are about to take their places."""
    write_text(folder / FOLDER / _MOVING, json.dumps({"names": names}))


def moving(folder: Path) -> list[str]:
    """Which files of a finished model may be at their places already, in a run that did not end."""
    return list(read_json(folder / FOLDER / _MOVING).get("names", []))


def _has_work(place: Path) -> bool:
    """Whether there is anything that an earlier call worked for."""
    kept = [place / KEPT, place / _MOVING]
    return any(p.exists() for p in kept) or any(read_json(p / _STATE) for p in place.glob("checkpoint-*"))


def read_json(path: Path) -> dict[str, Any]:
    """A file's JSON object; an empty one where there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError, UnicodeDecodeError):
        return {}
    return found if isinstance(found, dict) else {}
