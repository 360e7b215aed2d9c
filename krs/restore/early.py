"""Whether a checkpoint is of another sweep, as far as that is known before a weight of named models is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from krs._typing import Tokenizer
from krs.errors import KrsError
from krs.hooks.anatomy import anatomy
from krs.models.unloaded import unloaded
from krs.restore.call import Call
from krs.restore.checkpoint import earlier
from krs.restore.result import SweepResult
from krs.restore.storage import load_result


def refuse_another(
    file: Path | None,
    given: Mapping[str, Any],
    call: Call,
    tokenizer: Tokenizer | str | Path | None,
    as_stored: bool,
) -> None:
    """Raise `KrsError` for a checkpoint of another sweep, as `earlier` does once models are loaded.

    Args:
        file: the checkpoint, if there is one.
        given: the models, by side; unless all are given by name nothing is looked at.
        call: what is asked of them.
        tokenizer: as the caller gave it.
        as_stored: whether models are loaded in the dtypes of their files.
    """
    if file is None or not file.exists():
        return
    found = load_result(file)
    known = found.provenance if isinstance(found, SweepResult) else {}
    if not all("identity" in known.get(side, {}) for side in ("vanilla", "unlearned")):
        return
    if (models := unloaded(given, tokenizer)) is None:
        return
    try:
        bodies = {side: anatomy(model) for side, model in models.models.items()}
    except KrsError:
        return  # the models themselves say what is wrong
    sides = models.described(known, as_stored)
    earlier(file, call.of(bodies, models.tokenizer, frozenset(known.get("ends", ())), sides), progress=False)
