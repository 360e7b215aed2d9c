"""Where a model of a name is: in a directory, in the cache, or on the hub."""

from __future__ import annotations

from pathlib import Path

from krs.errors import KrsError
from krs.models.bundled import bundled
from krs.models.gguf import converted
from krs.names import BUNDLED, check_name
from krs.wording import kind


def locate(name: str | Path) -> tuple[str, bool]:
    """What to give to `from_pretrained`, and whether it is local. Fetches and converts if need be."""
    if not isinstance(name, str | Path):
        raise KrsError(f"krs.load takes a name, and was given {kind(name)}: a model that is loaded is passed as it is")
    check_name(name)
    path = Path(name).expanduser()
    if path.is_dir():
        return str(path), True
    if str(name) == BUNDLED:
        return str(bundled()), True
    if path.suffix == ".gguf":
        return str(converted(path)), True
    return str(name), False
