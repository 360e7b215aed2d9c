"""Tokenizers: beside a model, of a name, or of an adapter's base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from krs._typing import Tokenizer
from krs.errors import KrsError
from krs.models.hub import file_of, hub_options, json_of, source
from krs.models.olmo import is_original
from krs.models.places import locate

_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "spiece.model")


def find_tokenizer(model: nn.Module) -> Tokenizer | None:
    """The tokenizer that lies beside a model's checkpoint, or `None`. Looks at local files only."""
    name = getattr(getattr(model, "config", None), "_name_or_path", "") or getattr(model, "name_or_path", "")
    if not name:
        return None
    try:
        return tokenizer_beside(name, {"local_files_only": True})
    except (OSError, ValueError, ImportError, KeyError):
        return None


def tokenizer_beside(where: str, options: dict[str, Any]) -> Tokenizer | None:
    """The tokenizer of a model by name; `None` where none of its files is one."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    if not any(file_of(where, name, options) is not None for name in _FILES):
        return None
    passed = hub_options(options)
    if is_original(json_of(where, "config.json", options)):  # its own class is code that comes with ai2-olmo
        return PreTrainedTokenizerFast.from_pretrained(where, **passed)
    return AutoTokenizer.from_pretrained(where, **passed)


def as_tokenizer(given: Tokenizer | str | Path | None) -> Tokenizer | None:
    """A tokenizer, also by the name of a model that has one.

    Raises `KrsError` for a name without one.
    """
    if not isinstance(given, str | Path):
        return given
    where, local = locate(given)
    options = source(local)
    try:
        found = tokenizer_beside(where, options)
    except KrsError:
        raise
    except (OSError, ValueError, ImportError, KeyError) as reason:
        raise KrsError(f"tokenizer={str(given)!r} cannot be loaded: {str(reason).strip().splitlines()[0]}") from None
    if found is None:
        raise KrsError(f"tokenizer={str(given)!r} has no tokenizer beside it: give a directory or hub id that has one")
    return found
