"""Token ids that come as a rectangle: rows without their padding, or refused where nobody can tell what is padding."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from torch import Tensor

from krs.errors import KrsError
from krs.prompts.listed import is_integer_array, is_whole
from krs.wording import kind

Ids: TypeAlias = tuple[int, ...]


def id_rows(given: Any, what: str) -> list[Ids] | None:
    """The rows of what a tokenizer returned, or of an array of ids; `None` for anything else.

    >>> id_rows({"input_ids": [[0, 5, 6], [5, 6, 7]], "attention_mask": [[0, 1, 1], [1, 1, 1]]}, "prompts")
    [(5, 6), (5, 6, 7)]

    Raises `KrsError` for numbers that are no token ids, and for padded rows without a mask.
    """
    if isinstance(given, Mapping):
        return _of_encoding(given, what) if "input_ids" in given else None
    if isinstance(given, Tensor) and given.is_nested:
        return [ids_of(row, f"{what}, row {i}") for i, row in enumerate(given.unbind())]
    if not isinstance(given, Tensor | np.ndarray) or (isinstance(given, np.ndarray) and given.dtype.kind in "OSU"):
        return None
    if given.ndim == 1 and is_integer_array(given):
        raise KrsError(f"{what} is one list of token ids: pass a list of such lists, [ids]")
    if given.ndim != 2 or not is_integer_array(given):
        raise KrsError(
            f"{what} is {_shape(given)}: token ids are whole numbers, [prompt, token]; pass these, or a list of texts"
        )
    rows = [tuple(map(int, row)) for row in given.tolist()]
    for i, row in enumerate(rows):
        for edge, run in _edges(row):
            if run > 1:
                raise _padded(f"{what} is {_shape(given)}, and row {i} {edge} the token", row, edge, run)
    return rows


def ids_of(row: Any, where: str) -> Ids:
    """One row of token ids; raises `KrsError` for anything else."""
    if isinstance(row, Tensor | np.ndarray):
        if row.ndim != 1:
            raise KrsError(f"{where} is {_shape(row)}: one prompt is one-dimensional")
        if not is_integer_array(row):
            raise KrsError(f"{where} is {_shape(row)}: token ids are whole numbers")
        row = row.tolist()
    for j, token in enumerate(row):
        if not is_whole(token):
            raise KrsError(f"{where} has {kind(token)} as token {j}: token ids are whole numbers")
        if token < 0:
            raise KrsError(f"{where} has the token id {int(token)} at {j}: token ids are not negative")
    return tuple(map(int, row))


def check_unpadded(rows: Sequence[Ids], pads: Iterable[int], what: str, one_may_differ: bool = False) -> None:
    """Raise `KrsError` for rows that look padded with one of these ids.

    A pad may be the BOS or the EOS too, and one of these may stand at an edge; two may not, nor may one stand in some
    of several rows of one length, unless `one_may_differ`: answers end with an EOS or are cut off.
    """
    pads = frozenset(pads)
    found = [[run if row[-1 if edge == "ends with" else 0] in pads else 0 for edge, run in _edges(row)] for row in rows]
    equal = len(rows) > 1 and len(set(map(len, rows))) == 1
    for side in range(2):
        runs = [run[side] for run in found]
        uneven = equal and len(set(runs)) > 1 and not one_may_differ
        for i, run in enumerate(runs):
            if run > 1 or (run and uneven):
                edge = ("begins with", "ends with")[side]
                raise _padded(f"{what} {i} {edge} the pad token", rows[i], edge, run)


def _of_encoding(given: Mapping[str, Any], what: str) -> list[Ids]:
    ids, mask = given["input_ids"], given.get("attention_mask")
    if isinstance(ids, Tensor | np.ndarray):
        if ids.ndim not in (1, 2) or not is_integer_array(ids):
            raise KrsError(f"{what}['input_ids'] is {_shape(ids)}: token ids are whole numbers, [prompt, token]")
        one = ids.ndim == 1
    else:
        ids = list(ids)
        one = bool(ids) and is_whole(ids[0])
    if mask is None and not one:
        rows = id_rows(ids, what) if isinstance(ids, Tensor | np.ndarray) else None
        return rows or [ids_of(row, f"{what}['input_ids'], row {i}") for i, row in enumerate(ids)]
    rows = [ids_of(row, f"{what}['input_ids'], row {i}") for i, row in enumerate([ids] if one else ids)]
    if mask is None:
        return rows
    masks = [list(map(int, row)) for row in ([mask] if one else mask)]
    if [len(row) for row in masks] != [len(row) for row in rows]:
        raise KrsError(f"{what}['attention_mask'] and ['input_ids'] have other shapes: pass both as the tokenizer gave")
    return [_unpadded(row, seen, i, what) for i, (row, seen) in enumerate(zip(rows, masks, strict=True))]


def _unpadded(row: Ids, mask: list[int], i: int, what: str) -> Ids:
    seen = [j for j, m in enumerate(mask) if m]
    if seen and len(seen) != seen[-1] - seen[0] + 1:
        raise KrsError(
            f"{what}['attention_mask'], row {i}, has a hole in it: padding is at an end of a row; pass the ids alone"
        )
    return tuple(row[j] for j in seen)


def _edges(row: Ids) -> list[tuple[str, int]]:
    """How often the first token is repeated at the beginning, and the last one at the end."""
    found = []
    for edge, tokens in (("begins with", row), ("ends with", row[::-1])):
        run = next((j for j, token in enumerate(tokens) if token != tokens[0]), len(tokens))
        found.append((edge, run))
    return found


def _padded(what: str, row: Ids, edge: str, run: int) -> KrsError:
    token = row[0 if edge == "begins with" else -1]
    times = f", {run} times" if run > 1 else ""
    return KrsError(
        f"{what} {token}{times}, which looks like padding, and padding would be read and scored: pass the attention "
        "mask too, {'input_ids': ids, 'attention_mask': mask}, or lists of ids without padding"
    )


def _shape(value: Tensor | np.ndarray) -> str:
    name = "a tensor" if isinstance(value, Tensor) else "an array"
    return f"{name} of {list(value.shape)} ({str(value.dtype).removeprefix('torch.')})"
