"""What is known of named models before a weight of them is loaded: shapes, a tokenizer, which files they have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from krs._typing import Tokenizer
from krs.errors import KrsError
from krs.models.hub import source
from krs.models.identity import file_identity
from krs.models.load import locate
from krs.models.shapes import skeleton
from krs.models.tokenizers import as_tokenizer, tokenizer_beside


@dataclass(frozen=True, eq=False)
class Unloaded:
    """Models without weights.

    Attributes:
        models: by side, on the device `meta`.
        places: where each is.
        tokenizer: the caller's, or the first beside a model.
    """

    models: Mapping[str, nn.Module]
    places: Mapping[str, Path]
    tokenizer: Tokenizer | None

    def described(self, known: Mapping[str, Any], as_stored: bool) -> dict[str, dict[str, Any]]:
        """By side, the identity that `known` (a provenance) has of it, with other weights where files tell that it is
        another model.

        A model that is called as it was there is taken for the same, and so is one whose files do not tell; all are
        where `as_stored` is false, and models are loaded in another dtype than that of their files.
        """
        found = {}
        for side, model in self.models.items():
            theirs = known.get(side, {})
            identity = dict(theirs.get("identity", {}))
            if as_stored and identity and (weights := _of_files(self.places[side], model, theirs)) is not None:
                identity["weights"] = weights
            found[side] = {"identity": identity}
        return found


def unloaded(given: Mapping[str, Any], tokenizer: Tokenizer | str | Path | None) -> Unloaded | None:
    """Models as a caller gives them, by side; `None` unless all are given by name, and where something is wrong with
    one, which whoever loads it says better.
    """
    if not all(isinstance(one, str | Path) for one in given.values()):
        return None
    try:
        located = {side: locate(name) for side, name in given.items()}
        models = {side: skeleton(*place) for side, place in located.items()}
        reader = as_tokenizer(tokenizer)
        if reader is None:
            beside = (tokenizer_beside(where, source(local)) for where, local in located.values())
            reader = next((one for one in beside if one is not None), None)
    except (KrsError, OSError, ValueError, KeyError, RuntimeError, ImportError):
        return None
    return Unloaded(models, {side: Path(where) for side, (where, _) in located.items()}, reader)


def _of_files(folder: Path, model: nn.Module, known: Mapping[str, Any]) -> str | None:
    """The digest of a directory's weights, if it is another directory than was noted, and if it is the digest that the
    loaded model will have: its tensors are called as the model's are, and are as many and as large as there.
    """
    named = (str(known.get(key) or "") for key in ("given_as", "name_or_path"))
    if any(name and Path(name).expanduser().resolve() == folder.resolve() for name in named):
        return None
    try:
        found = file_identity(folder)
    except (KrsError, OSError, ValueError):
        return None
    theirs = known["identity"]
    alike = all(found[what] == theirs.get(what) for what in ("tensors", "bytes"))
    if not alike or theirs.get("adapters") or not _names(folder) <= model.state_dict().keys():
        return None
    return str(found["weights"])


def _names(folder: Path) -> set[str]:
    from safetensors import safe_open

    names: set[str] = set()
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="numpy") as tensors:
            names |= set(tensors.keys())
    return names
