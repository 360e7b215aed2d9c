"""What value vectors say as tokens, and its file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from krs._typing import DataFrame
from krs.errors import KrsError
from krs.notebook import as_html
from krs.wording import as_text, counted, kind
from krs.writing import write_text

_FORMAT = 1
_SHOWN = 5
"""So many tokens of a vector stand in a printed table."""

_OF_VECTORS = ("concept", "layer", "unit", "relative_change", "cosine", "kept", "tv")
_OF_TOKENS = ("vector", "side", "rank", "token_id", "token", "score", "probability")
_NUMBERS = ("relative_change", "cosine", "kept", "tv", "score", "probability")


@dataclass(frozen=True, repr=False)
class ValueTokens:
    """The result of `krs.metrics.vocabulary`: the tokens that value vectors write, before and after.

    Attributes:
        vectors: a row a value vector: `concept` (where one named it, else empty), `layer`, `unit` (the paper's `Dim`),
            and, of two models, how far it moved: `relative_change` (norm of the change over the vanilla norm),
            `cosine`, `kept` (the share of the vanilla top tokens that are still top tokens) and `tv` (total variation
            between the two distributions over tokens, from 0 to 1). NaN of one model alone.
        tokens: tidy: `vector` (its row in `vectors`), `side` (vanilla or unlearned), `rank` (from 1), `token_id`,
            `token` (its text), `score` (the logit that one unit of the coefficient adds) and `probability` (softmax of
            the scores).
        provenance: models, settings, versions, time.
    """

    vectors: DataFrame
    tokens: DataFrame
    provenance: dict[str, Any]

    @property
    def notes(self) -> list[str]:
        """What is most likely not meant about the models, and what to know about these tokens."""
        return list(self.provenance.get("notes", []))

    def table(self, n: int | None = None) -> DataFrame:
        """A row a value vector: where it is, its `n` first tokens (all, if not given) by model, how far it moved."""
        shown = self.tokens if n is None else self.tokens[self.tokens["rank"] <= n]
        found = self.vectors.copy()
        for side in dict.fromkeys(self.tokens.side):
            texts = shown[shown.side == side].groupby("vector").token.agg(lambda t: " ".join(map(repr, t)))
            found.insert(len(found.columns) - 4, side, texts)
        if "unlearned" not in found:
            found = found.drop(columns=["relative_change", "cosine", "kept", "tv"])
        return found if found.concept.any() else found.drop(columns="concept")

    def to_frame(self) -> DataFrame:
        """Tidy: a row a token of each vector and model, with what `vectors` has of the vector."""
        return self.vectors.join(self.tokens.set_index("vector"), how="right").reset_index(drop=True)

    def to_json(self) -> str:
        """All of it as JSON: what `save` writes."""
        return json.dumps(
            {
                "krs_vocabulary": _FORMAT,
                "vectors": _records(self.vectors),
                "tokens": _records(self.tokens),
                "provenance": self.provenance,
            },
            ensure_ascii=False,
            indent=1,
        )

    def save(self, path: str | Path, overwrite: bool = False) -> Path:
        """Write everything to one JSON file; `krs.metrics.load_vocabulary` reads it.

        Raises `KrsError` when the file exists and `overwrite` is false.
        """
        if Path(path).exists() and not overwrite:
            raise KrsError(f"{str(path)!r} exists already: choose another name, or save(path, overwrite=True)")
        write_text(path, self.to_json())
        return Path(path)

    def _headline(self) -> str:
        head = "behind the final norm" if self.provenance["norm"] else "without the final norm"
        return f"{counted(len(self.vectors), 'value vector')} as tokens, {head}"

    def __repr__(self) -> str:
        shown = as_text(self.table(_SHOWN).set_index(["layer", "unit"]), 3, sparsify=False)
        return "\n".join([self._headline(), shown, *(f"note: {note}" for note in self.notes)])

    def _repr_html_(self) -> str:
        return as_html(self._headline(), self.table(_SHOWN), (f"note: {n}" for n in self.notes), index=False)


def load_vocabulary(path: str | Path) -> ValueTokens:
    """Read what `ValueTokens.save` wrote; raises `KrsError` for anything else, and for less than all of it."""
    import pandas as pd

    try:
        told = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as reason:
        raise KrsError(f"cannot read {str(path)!r}: {reason.strerror}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as reason:
        told, unfit = None, str(reason)
    else:
        unfit = next(_unfit(told), "")
    if unfit:
        raise KrsError(
            f"{str(path)!r} does not hold value vectors as tokens ({unfit}): give a file that krs vocabulary wrote"
        )
    if told["krs_vocabulary"] != _FORMAT:
        raise KrsError(f"{str(path)!r} was written by another version of krs (format {told['krs_vocabulary']})")
    vectors, tokens = (pd.DataFrame(told[part], columns=names) for part, names in _PARTS.items())
    vectors, tokens = (f.astype({name: float for name in _NUMBERS if name in f}) for f in (vectors, tokens))
    return ValueTokens(vectors, tokens, told["provenance"])


_PARTS = {"vectors": list(_OF_VECTORS), "tokens": list(_OF_TOKENS)}


def _unfit(told: Any) -> Iterator[str]:
    """Why a file's content is no such result, if it is not."""
    if not isinstance(told, dict):
        yield f"it is {kind(told)}"
        return
    for name, wanted in {"krs_vocabulary": int, "vectors": list, "tokens": list, "provenance": dict}.items():
        if not isinstance(told.get(name), wanted):
            yield f"{name!r} is {'missing' if name not in told else type(told[name]).__name__}"
            return
    for part, names in _PARTS.items():
        if not told[part]:
            yield f"{part!r} is empty"
        for i, row in enumerate(told[part]):
            if not isinstance(row, dict) or set(row) != set(names):
                yield f"row {i} of {part!r} has other fields than {', '.join(names)}"
    if "norm" not in told["provenance"]:
        yield "'norm' is missing in its provenance"


def _records(frame: DataFrame) -> list[dict[str, Any]]:
    """Rows as JSON holds them, NaN as null."""
    rows = frame.astype(object).where(frame.notna(), None).to_dict(orient="records")
    return [{str(name): value for name, value in row.items()} for row in rows]
