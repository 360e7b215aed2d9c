"""Which model was made from which: what `krs_unlearn.json` beside a checkpoint tells."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

from torch import nn

from krs.errors import KrsWarning
from krs.models.pair import dtype_of
from krs.models.provenance import describe_model

REPORT = "krs_unlearn.json"
_IDENTITIES = ("identity", "weights_sample_sha256")
"""Under which names reports have, or once had, what tells a model from others; the first that both have counts."""


def check_roles(vanilla: nn.Module, unlearned: nn.Module) -> list[str]:
    """Warn (and return it as a note) when the report beside a checkpoint says that the two are not a pair.

    They may be swapped, or the unlearned one made from another model than the vanilla one. Reports name the vanilla
    model by a hash of its weights, so nothing is said of offloaded weights, nor of another dtype than the report's.
    """
    if _name(vanilla) == _name(unlearned):  # a copy in memory is called as its original: its report would be another's
        return []
    of_vanilla, of_unlearned = _origin(vanilla), _origin(unlearned)
    if of_unlearned is not None and _is_origin(vanilla, of_unlearned) is False:
        if of_vanilla is not None and _is_origin(unlearned, of_vanilla):
            return _said(_swapped(vanilla, unlearned))
        return _said(
            f"the unlearned model ({_name(unlearned)}) was made from another model than the vanilla one given "
            f"({_name(vanilla)}): its {REPORT} names {_reported(of_unlearned)}. The score compares with the model given"
        )
    if of_unlearned is None and of_vanilla is not None and _is_origin(unlearned, of_vanilla):
        return _said(_swapped(vanilla, unlearned))
    return []


def _swapped(vanilla: nn.Module, unlearned: nn.Module) -> str:
    return (
        f"the models may be swapped: the one given as vanilla ({_name(vanilla)}) was unlearned, as its {REPORT} says, "
        f"from the one given as unlearned ({_name(unlearned)}); the vanilla model comes first"
    )


def _said(message: str) -> list[str]:
    warnings.warn(message, KrsWarning, stacklevel=3)
    return [message]


def _origin(model: nn.Module) -> dict[str, Any] | None:
    """What the report beside a model's checkpoint says of the vanilla model; `None` without a report."""
    place = str(getattr(getattr(model, "config", None), "_name_or_path", "") or "")
    try:
        report = json.loads((Path(place) / REPORT).read_text(encoding="utf-8")) if place else {}
    except (OSError, ValueError):
        return None
    found = report.get("vanilla") if isinstance(report, dict) else None
    return found if isinstance(found, dict) else None


def _is_origin(model: nn.Module, described: dict[str, Any]) -> bool | None:
    """Whether a report is about this model; `None` where that cannot be known."""
    if any(p.device.type == "meta" for p in model.parameters()) or described.get("dtype") != dtype_of(model):
        return None
    ours = describe_model("", model)
    return next((ours[key] == described[key] for key in _IDENTITIES if key in ours and key in described), None)


def _name(model: nn.Module) -> str:
    return repr(str(getattr(getattr(model, "config", None), "_name_or_path", "") or type(model).__name__))


def _reported(described: dict[str, Any]) -> str:
    names = [described.get("given_as"), described.get("name_or_path")]
    return " at ".join(dict.fromkeys(repr(str(name)) for name in names if name)) or "none by name"
