"""Names of models and dtypes, checked without importing torch: a mistyped one costs nothing."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

from krs.errors import KrsError

BUNDLED = "smollm2"
DTYPES = ("float64", "float32", "bfloat16", "float16")
CONFIGS = ("config.json", "adapter_config.json")


def check_name(name: str | Path) -> None:
    """Raise `KrsError` for what can be neither a local model nor a hub id. Looks at local files only.

    >>> check_name("smolm2")
    Traceback (most recent call last):
    krs.errors.KrsError: no model is called 'smolm2': did you mean 'smollm2'?
    """
    text, path = str(name), Path(name).expanduser()
    if text == BUNDLED:
        return
    if text.strip() and path.is_dir():
        if not any((path / f).is_file() for f in CONFIGS):
            raise KrsError(
                f"{text!r} is a directory without a config.json or adapter_config.json, so there is no model "
                "in it: give the directory that save_pretrained wrote"
            )
        return
    if path.suffix == ".gguf":
        if not path.is_file():
            raise KrsError(f"no GGUF file at {text!r}: check the path")
        return
    if path.is_file():
        raise KrsError(f"{text!r} is a file, but not a .gguf one: give the directory that holds the model")
    if _looks_like_a_path(text):
        raise KrsError(
            f"no such path: {text!r}{neighbours(text)}. Give an existing directory, a .gguf file, or a hub id"
        )
    if "/" not in text and get_close_matches(text.lower(), [BUNDLED], cutoff=0.8):
        raise KrsError(f"no model is called {text!r}: did you mean {BUNDLED!r}?")


def neighbours(name: str) -> str:
    """What a mistyped path was probably meant to be, as the end of a sentence; empty where nothing is near it."""
    path = Path(name).expanduser()
    if not name.strip() or path.parent == path or not path.parent.is_dir() or str(path.parent) in (".", "/"):
        return ""
    near = get_close_matches(path.name, [p.name for p in path.parent.iterdir()], n=1, cutoff=0.5)
    meant = f"; did you mean {str(path.parent / near[0])!r}?" if near else ""
    return f" (there is a folder {str(path.parent)!r}, but no {path.name!r} in it{meant})"


def _looks_like_a_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or "\\" in name or name.count("/") > 1 or not name.strip()
