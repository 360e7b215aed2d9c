"""What a file of answers holds, as plain data."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from krs._typing import DataFrame
from krs.wording import kind

FORMAT = 1
FLOATS = ("bleu", "ceiling", "distinct_2", "distinct_2_vanilla", "nll", "nll_vanilla")
OF_TEXTS = ("bleu_text", "bleu_text_vanilla", "nll_text", "nll_text_vanilla")
"""Columns of numbers that a result of text completion has beside the others."""

BOOLS = ("refusals", "refusals_vanilla")
MODELS = ("vanilla", "unlearned")
_TEXTS = ("side", "question", "vanilla", "unlearned")


def as_json(frame: DataFrame, token_ids: Mapping[str, Any], provenance: Mapping[str, Any]) -> str:
    """The fields of `Answers` as the text of a file."""
    said = {
        "krs_answers": FORMAT,
        "rows": frame.astype(object).where(frame.notna(), None).to_dict(orient="records"),
        "token_ids": token_ids,
        "provenance": provenance,
    }
    return json.dumps(said, ensure_ascii=False, indent=1)


def unfit(said: Any) -> Iterator[str]:
    """Why a file's content is not answers, if it is not."""
    if not isinstance(said, dict):
        yield f"it is {kind(said)}"
        return
    kinds = {"krs_answers": int, "rows": list, "token_ids": dict, "provenance": dict}
    for name, wanted in kinds.items():
        if not isinstance(said.get(name), wanted):
            yield f"{name!r} is {'missing' if name not in said else type(said[name]).__name__}"
            return
    if not said["rows"]:
        yield "there is no row"
    if not isinstance(said["provenance"].get("bleu"), str):
        yield "'bleu' is missing in its provenance"
    if "vanilla" not in said["token_ids"]:
        yield "the token ids of 'vanilla' are missing"
    for model, rows in said["token_ids"].items():
        if not isinstance(rows, list) or not 0 < len(rows) <= len(said["rows"]):
            yield f"the token ids of {model!r} do not belong to its rows"
            return
        if not all(isinstance(row, list) and all(map(_is_id, row)) for row in rows):
            yield f"the token ids of {model!r} are no lists of ids"
    many = [len(said["token_ids"].get(model, ())) for model in MODELS]
    if many[1] and many[0] < len(said["rows"]):
        yield "the unlearned model answers before the vanilla model has"
    texts: tuple[str, ...] = _TEXTS
    floats: tuple[str, ...] = FLOATS
    if any(isinstance(row, dict) and "text" in row for row in said["rows"]):
        texts, floats = (*_TEXTS, "text"), (*FLOATS, *OF_TEXTS)
    for i, row in enumerate(said["rows"]):
        waiting = {m for m, n in zip(MODELS, many, strict=True) if i >= n}
        yield from _unfit_row(row, f"row {i}", waiting, texts, floats)


def _unfit_row(
    row: Any, where: str, waiting: set[str], texts: tuple[str, ...], floats: tuple[str, ...]
) -> Iterator[str]:
    """The same of one row; the entries of a model that has not answered yet are empty, and what compares the two."""
    if not isinstance(row, dict):
        yield f"{where} is {kind(row)}"
        return
    for names, fits in ((texts, _is_text), (floats, _is_number), (BOOLS, _is_flag)):
        for name in names:
            value, there = row.get(name), name in row
            if name in waiting:
                right = there and value is None
            else:
                empty = value is None and (names == floats or bool(waiting and names == BOOLS))
                right = there and (fits(value) or empty)
            if not right:
                yield f"{name!r} of {where} is {'missing' if not there else repr(value)[:40]}"


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool) or (isinstance(value, float) and value in (0.0, 1.0))  # where some are missing


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
