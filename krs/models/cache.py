"""Where converted models are kept, and how they get there all at once or not at all."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

_DONE = "config.json"


def cache_root() -> Path:
    """`$HF_HOME/krs` if that is set, else `$XDG_CACHE_HOME/krs`, else `~/.cache/krs`."""
    if home := os.environ.get("HF_HOME"):
        return Path(home).expanduser() / "krs"
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "krs"


def is_cached(name: str) -> bool:
    """Whether `build_once(name, …)` has its directory already."""
    return (cache_root() / name / _DONE).is_file()


def build_once(name: str, build: Callable[[Path], None]) -> Path:
    """The cache directory `name`; when it is missing, `build(folder)` fills it.

    `build` writes into a folder of its own, which takes the final name in one step: a build that is interrupted
    leaves nothing under that name. Of two processes one builds while the other waits. What an earlier,
    killed build left is removed.
    """
    from filelock import FileLock

    final = cache_root() / name
    if is_cached(name):
        return final
    final.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{final}.lock"):
        if is_cached(name):
            return final
        for stale in final.parent.glob(f"{final.name}.tmp-*"):
            shutil.rmtree(stale, ignore_errors=True)
        folder = final.parent / f"{final.name}.tmp-{uuid.uuid4().hex[:8]}"
        folder.mkdir()
        try:
            build(folder)
            if final.exists():
                shutil.rmtree(final)
            folder.rename(final)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return final
