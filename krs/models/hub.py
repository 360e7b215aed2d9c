"""Files of a model by name: in a local directory, in the hub's cache, or on the hub."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from krs.reach import is_reachable

HUB_OPTIONS = ("local_files_only", "revision", "trust_remote_code", "token", "cache_dir", "force_download", "proxies")
"""Options of `from_pretrained` that say how files are had, the same for model, tokenizer and adapter."""


def hub_options(options: dict[str, Any]) -> dict[str, Any]:
    """Of all options for `from_pretrained`, those that say how files are had."""
    return {name: options[name] for name in HUB_OPTIONS if name in options}


def file_of(where: str, name: str, options: dict[str, Any]) -> Path | None:
    """A file of a model, fetched if need be; `None` where there is none of this name.

    Raises `OSError` for a repository that cannot be had.
    """
    from transformers.utils import cached_file

    passed = {k: v for k, v in hub_options(options).items() if k != "trust_remote_code"}
    found = cached_file(
        where,
        name,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        **passed,
    )
    return None if found is None else Path(found)


def json_of(where: str, name: str, options: dict[str, Any]) -> dict[str, Any]:
    """What a JSON file of a model says; nothing where there is none."""
    found = file_of(where, name, options)
    if found is None:
        return {}
    said = json.loads(found.read_text(encoding="utf-8"))
    return said if isinstance(said, dict) else {}


@contextmanager
def offline(options: dict[str, Any]) -> Iterator[None]:
    """Inside, nothing is asked of the hub if the options say `local_files_only`.

    The libraries hand that option on to most of what they ask for, not to all of it.
    """
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or bool(options.get("local_files_only"))
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def source(local: bool) -> dict[str, Any]:
    """The options with which files are had: without the network where they are local, or where there is none."""
    return {"local_files_only": True} if local or not is_reachable() else {}
