"""Where a run is written, and whether what lies there already is the beginning of the same run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from krs.errors import KrsError

FOLDER = "checkpoints"
_RECIPE = "krs_recipe.json"
_STATE = "trainer_state.json"


def output(given: str | Path | None, overwrite: bool) -> Path | None:
    """The output directory; raises `KrsError` for a file, and for a directory that holds more than checkpoints."""
    if given is None:
        return None
    folder = Path(given)
    if folder.exists() and not folder.is_dir():
        raise KrsError(f"output_dir={str(given)!r} is a file: give a directory")
    inside = {p.name for p in folder.iterdir()} if folder.is_dir() else set()
    if inside - {FOLDER} and not overwrite:
        raise KrsError(f"output_dir={str(given)!r} is not empty: give another one, or overwrite=True")
    return folder


def begin(folder: Path, recipe: dict[str, Any], overwrite: bool, main: bool = True) -> Path | None:
    """Note what the run is made of; returns the newest checkpoint of the same run, if there is one.

    Of several processes each looks, and only the main one writes or refuses.

    Raises `KrsError` for checkpoints of another run (another model, other texts or settings).
    """
    place = folder / FOLDER
    mark = place / _RECIPE
    differing: list[str] = []
    if there := place.is_dir() and any(place.iterdir()):
        theirs = _read(mark)
        ours = json.loads(json.dumps(recipe))
        differing = sorted(
            _named(k, theirs.get(k), ours.get(k)) for k in ours.keys() | theirs.keys() if ours.get(k) != theirs.get(k)
        )
        if not differing:
            return newest(folder)
    if not main:
        return None
    if there:
        if not overwrite:
            raise KrsError(
                f"{str(place)!r} holds checkpoints of another run; {', '.join(differing)} differ: give another "
                "output_dir, or overwrite=True to begin anew"
            )
        shutil.rmtree(place)
    place.mkdir(parents=True, exist_ok=True)
    mark.write_text(json.dumps(recipe, indent=2), encoding="utf-8")
    return None


def _named(what: str, theirs: Any, ours: Any) -> str:
    """What differs; of settings, which."""
    if what != "settings" or not isinstance(theirs, dict):
        return what
    names = [n for n in ours.keys() | theirs.keys() if ours.get(n) != theirs.get(n)]
    return " and ".join(f"{n} ({theirs.get(n)!r} there, {ours.get(n)!r} here)" for n in sorted(names))


def newest(folder: Path) -> Path | None:
    """The latest checkpoint that was written to its end (the trainer's state is written last)."""
    found = [p for p in (folder / FOLDER).glob("checkpoint-*") if _read(p / _STATE)]
    return max(found, key=lambda p: int(p.name.rpartition("-")[2]), default=None)


def end(folder: Path) -> None:
    """The run is complete: its checkpoints are not needed any more."""
    shutil.rmtree(folder / FOLDER, ignore_errors=True)


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError, UnicodeDecodeError):
        return {}
    return found if isinstance(found, dict) else {}
