"""Libraries that only some things need: is one there, and how to get it."""

from __future__ import annotations

from importlib.util import find_spec

from krs.errors import KrsError


def require(library: str, extra: str, what: str) -> None:
    """Raise `KrsError` if a library of an extra is not installed; `what` needs it. Imports nothing.

    >>> require("torch", "unlearn", "training")
    """
    if not installed(library):
        raise KrsError(missing(library, extra, what))


def installed(library: str) -> bool:
    """Whether a library can be imported."""
    try:
        return find_spec(library) is not None
    except ValueError:  # it is marked as missing in sys.modules
        return False


def missing(library: str, extra: str, what: str) -> str:
    """What is missing, and what installs it: from an index, or from a clone of the project.

    >>> print(missing("peft", "unlearn", "lora"))
    lora needs peft, which is not installed: pip install 'krs[unlearn]' (in a clone: pip install -e ".[unlearn]")
    """
    how = f"pip install 'krs[{extra}]' (in a clone: pip install -e \".[{extra}]\")"
    return f"{what} needs {library}, which is not installed: {how}"
