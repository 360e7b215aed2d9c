"""Results as files: arrays and a JSON header in one safetensors file, written all at once, checked when read."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from krs.errors import KrsError
from krs.hooks.points import Setting
from krs.hooks.registry import setting
from krs.metrics.score import SCORINGS
from krs.restore.axes import Axis
from krs.restore.described import point_as_dict, setting_from
from krs.restore.losses import Losses, Measured
from krs.restore.plan import EACH, PARTS, Plan
from krs.restore.windows import ENDS, Window
from krs.writing import write_bytes

Fields = Mapping[str, Any]
"""What a `SweepResult` has, by name."""

_FORMAT = 2
"""1: settings by name, logit MSEs only."""

_LOSSES = ("restored", "baseline", "power", "mask")
_PARTS = ("restored", "recipient", "donor")
_OPTIONAL = ("part", "tokens", "lengths")


class _Unfit(Exception):  # noqa: N818 - a message on its way to a KrsError
    """Why a file is not one of ours."""


def save(result: Fields, path: Path, overwrite: bool) -> Path:
    """Write a result; an existing file is replaced only if asked for, and then in one step."""
    _check_new(path, overwrite)
    header, arrays = _as_file(**result)
    return _write(path, {"format": _FORMAT, **header}, arrays)


def save_mean(members: Sequence[Fields], names: Sequence[str], path: Path, overwrite: bool) -> Path:
    """Write a mean: its members, one after the other."""
    _check_new(path, overwrite)
    headers: list[dict[str, Any]] = []
    arrays: dict[str, np.ndarray] = {}
    for i, member in enumerate(members):
        header, found = _as_file(**member)
        headers.append(header)
        arrays |= {f"{i}.{name}": values for name, values in found.items()}
    return _write(path, {"format": _FORMAT, "kind": "mean", "names": names, "members": headers}, arrays)


def _check_new(path: Path, overwrite: bool) -> None:
    if path.exists() and not overwrite:
        raise KrsError(f"{str(path)!r} exists already: choose another name, or save(path, overwrite=True)")


def _write(path: Path, header: dict[str, Any], arrays: dict[str, np.ndarray]) -> Path:
    from safetensors.numpy import save as as_bytes

    whole = {name: np.ascontiguousarray(values) for name, values in arrays.items()}
    write_bytes(path, as_bytes(whole, metadata={"krs": json.dumps(header, default=_plain)}))
    return path


def _plain(value: Any) -> Any:
    """What JSON has no form for, as a number or text: what was computed is not lost over it."""
    return value.item() if isinstance(value, np.generic) else str(value)


def _as_file(
    plan: Plan,
    losses: Losses,
    part: np.ndarray | None,
    reach: np.ndarray | None,
    token_ids: Sequence[Any],
    **told: Any,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """A result as a header and arrays."""
    header = {
        "settings": [[point_as_dict(p) for p in s.points] for s in plan.settings],
        "measures": list(losses.measured),
        "windows": [asdict(w) for w in plan.windows],
        "n_layers": plan.n_layers,
        "positions": plan.positions,
        "axes": [asdict(axis) for axis in plan.axes],
        "places": plan.places,
        **{name: told[name] for name in ("scoring", "prompts", "answers", "pieces", "provenance")},
    }
    arrays = {name: getattr(losses, name) for name in (*_LOSSES, "donor")}
    for name, kept in losses.measured.items():
        arrays |= {f"{name}.{side}": getattr(kept, side) for side in _PARTS}
    if part is not None:
        arrays["part"] = part
    if reach is not None:
        arrays["reach"] = reach
    if token_ids:
        arrays["tokens"] = np.array([t for pair in token_ids for ids in pair for t in ids], dtype=np.int64)
        arrays["lengths"] = np.array([[len(ids) for ids in pair] for pair in token_ids], dtype=np.int64)
    return header, arrays


def size_of(plan: Plan, ids: Sequence[Sequence[int]], tokens: int, measures: int = 1) -> int:
    """About how many bytes a result's file has, of these prompts with so many tokens scored in so many measures."""
    plan, prompts = plan.at_places(range(max(map(len, ids)) + tokens)), len(ids)
    return 8 * (len(plan) + 3) * prompts * tokens * measures + 2 * len(plan) * prompts + 200_000


def read(path: str | Path) -> tuple[list[dict[str, Any]], list[str] | None]:
    """What `save` wrote, or `save_mean`: results, and what a mean calls them; `KrsError` for anything else."""
    if not Path(path).is_file():
        raise KrsError(f"no file {str(path)!r}")
    try:
        return _loaded(*_read(Path(path)))
    except OSError as reason:
        raise KrsError(f"cannot read {str(path)!r}: {reason.strerror or reason}") from None
    except _Unfit as reason:
        raise KrsError(
            f"{str(path)!r} is not a result that krs saved ({reason}): give another file, or make it again"
        ) from None


def _read(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            text = (file.metadata() or {}).get("krs")
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, TypeError, AttributeError) as reason:  # the last two: dtypes that numpy does not have
        raise _Unfit(str(reason)) from None
    if text is None:
        raise _Unfit("it has no header of krs")
    try:
        header = json.loads(text)
    except json.JSONDecodeError as reason:
        raise _Unfit(f"its header is not JSON: {reason}") from None
    _need(isinstance(header, dict), "its header is no object")
    return header, arrays


def _loaded(header: dict[str, Any], arrays: dict[str, np.ndarray]) -> tuple[list[dict[str, Any]], list[str] | None]:
    edition = _entry(header, "format", _is_count)
    if edition > _FORMAT:
        raise KrsError(f"this result was saved by a newer krs (format {edition}): update krs to read it")
    if header.get("kind") != "mean":
        return [_result(header, arrays)], None
    names = _entry(header, "names", _is_list_of(lambda v: isinstance(v, str)))
    headers = _entry(header, "members", _is_list_of(lambda v: isinstance(v, dict)))
    _need(headers and len(names) == len(headers), "it has no members, or not one name for each")
    members = []
    for i, one in enumerate(headers):
        begin = f"{i}."
        members.append(_result(one, {n.removeprefix(begin): v for n, v in arrays.items() if n.startswith(begin)}))
    return members, names


def _result(header: dict[str, Any], arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    plan = _plan(header)
    losses = _losses(arrays, len(plan), header.get("measures", []))
    prompts = len(losses.mask)
    provenance = _entry(header, "provenance", lambda v: isinstance(v, dict))
    _need(all(isinstance(provenance.get(side, {}), dict) for side in ("vanilla", "unlearned")), "odd provenance")
    _need(_is_waiting(provenance.get("waiting")), "'waiting' in its provenance is no list of prompts")
    texts = {name: _entry(header, name, _is_list_of(lambda _: True)) for name in ("prompts", "answers")}
    for name, rows in texts.items():
        _need(len(rows) in (0, prompts), f"it has {len(rows)} {name} for {prompts} rows of numbers")
    part = arrays.get("part")
    if part is not None:
        _need(part.shape == (len(plan), prompts) and part.dtype == np.int16, f"'part' is {_shape(part)}")
        parts = provenance.get("parts")
        _need(_is_list_of(lambda p: isinstance(p, dict))(parts), "'part' refers to parts that provenance does not name")
        _need(part.min(initial=-1) >= -1 and part.max(initial=-1) < len(parts or []), "'part' refers to no part")
    ids = _token_ids(arrays, prompts)
    return {
        "plan": plan,
        "losses": losses,
        "scoring": _entry(header, "scoring", lambda v: isinstance(v, str) and v in SCORINGS),
        "prompts": tuple(map(_frozen, texts["prompts"])),
        "answers": tuple(map(_frozen, texts["answers"])),
        "provenance": provenance,
        "part": part,
        "token_ids": ids,
        "pieces": _pieces(header.get("pieces", []), ids),
        "reach": _reach(arrays.get("reach"), prompts, bool(plan.places)),
    }


def _plan(header: dict[str, Any]) -> Plan:
    n_layers = _entry(header, "n_layers", _is_count)
    names = _entry(header, "settings", _is_list_of(lambda v: isinstance(v, str | list)))
    listed = _entry(header, "windows", _is_list_of(lambda v: isinstance(v, dict)))
    _need(bool(names) and bool(listed), "it has no settings or no windows")
    windows = []
    for window in listed:
        name = _entry(window, "name", lambda v: _is_count(v) or isinstance(v, str))
        layers = _entry(window, "layers", _is_list_of(_is_count))
        ascending = all(a < b for a, b in pairwise(layers))
        fits = ascending and layers[-1] < n_layers if layers else name in ENDS
        _need(fits, f"the window {name!r} has layers {layers} of {n_layers}")
        windows.append(Window(name, tuple(layers)))
    positions = _entry(header, "positions", _is_positions)
    positions = _frozen(positions)
    settings = tuple(_setting(name) for name in names)
    places = header.get("places", [])
    whole = isinstance(places, list) and all(isinstance(p, int) and not isinstance(p, bool) for p in places)
    _need(whole and bool(places) == (positions == EACH), f"its places are {str(places)[:60]!r}")
    return Plan(settings, tuple(windows), n_layers, positions, _axes(header.get("axes", []), settings), tuple(places))


def _axes(listed: Any, settings: tuple[Setting, ...]) -> tuple[Axis, ...]:
    """Which settings are heads or units of one point; nothing for results of earlier versions."""
    _need(_is_list_of(lambda v: isinstance(v, dict))(listed), "'axes' is no list")
    found = []
    for said in listed:
        name = _entry(said, "name", lambda v: v in ("head", "unit"))
        point, label = (_entry(said, key, lambda v: isinstance(v, str)) for key in ("point", "label"))
        first, numbers = _entry(said, "first", _is_count), _entry(said, "numbers", _is_list_of(_is_count))
        _need(first + len(numbers) <= len(settings), f"the axis of {point!r} has settings that there are not")
        found.append(Axis(name, point, label, first, tuple(numbers)))
    return tuple(found)


def _losses(arrays: dict[str, np.ndarray], restorations: int, measures: Any) -> Losses:
    for name in _LOSSES:
        _need(name in arrays, f"the array {name!r} is missing")
    mask = arrays["mask"]
    _need(mask.ndim == 2 and mask.dtype == bool and mask.size > 0, f"'mask' is {_shape(mask)}")
    _need(_is_list_of(lambda v: isinstance(v, str))(measures), "'measures' is no list of names")
    given = {name: arrays[name] for name in _LOSSES}
    given["donor"] = arrays.get("donor", np.where(np.isnan(given["baseline"]), np.nan, 0.0))
    for name, found in given.items():
        _need_shape(name, found, mask, restorations)
    measured = {}
    for measure in measures:
        parts = {part: arrays.get(f"{measure}.{part}") for part in _PARTS}
        for part, values in parts.items():
            _need(values is not None, f"the array '{measure}.{part}' is missing")
            _need_shape(part, values, mask, restorations)  # type: ignore[arg-type]
        measured[measure] = Measured(**parts)  # type: ignore[arg-type]
    return Losses(**given, measured=measured)


def _need_shape(name: str, found: np.ndarray, mask: np.ndarray, restorations: int) -> None:
    if name == "mask":
        return
    wanted = (restorations, *mask.shape) if name == "restored" else mask.shape
    _need(found.shape == wanted and found.dtype == np.float64, f"{name!r} is {_shape(found)}, not {list(wanted)}")


def _token_ids(arrays: dict[str, np.ndarray], prompts: int) -> tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]:
    """Ids of each prompt and its answer; nothing for results of earlier versions."""
    if "tokens" not in arrays and "lengths" not in arrays:
        return ()
    _need("tokens" in arrays and "lengths" in arrays, "'tokens' and 'lengths' belong together")
    flat, lengths = arrays["tokens"], arrays["lengths"]
    _need(
        lengths.shape == (prompts, 2) and lengths.dtype == flat.dtype == np.int64 and lengths.min() >= 0,
        f"'lengths' is {_shape(lengths)}",
    )
    _need(flat.ndim == 1 and len(flat) == lengths.sum(), f"'tokens' is {_shape(flat)}")
    rows = [tuple(map(int, row)) for row in np.split(flat, lengths.ravel().cumsum()[:-1])]
    return tuple(zip(rows[::2], rows[1::2], strict=True))


def _pieces(said: Any, ids: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]) -> tuple[tuple[str, ...], ...]:
    """The tokens as text; nothing for results of earlier versions, and without a tokenizer."""
    _need(_is_list_of(_is_list_of(lambda v: isinstance(v, str)))(said), "'pieces' is no list of texts")
    _need([len(p) + len(a) for p, a in ids] == [len(row) for row in said] or not said, "'pieces' are of other tokens")
    return tuple(map(tuple, said))


def _reach(found: np.ndarray | None, prompts: int, needed: bool) -> np.ndarray | None:
    """How many positions each prompt has on either side of its answer's beginning."""
    _need(found is not None or not needed, "the array 'reach' is missing")
    if found is not None:
        _need(found.shape == (prompts, 2) and found.dtype == np.int64, f"'reach' is {_shape(found)}")
    return found


def _entry(header: dict[str, Any], name: str, fits: Callable[[Any], bool]) -> Any:
    _need(name in header, f"{name!r} is missing in its header")
    _need(fits(header[name]), f"{name!r} is {str(header[name])[:60]!r} in its header")
    return header[name]


def _need(condition: object, otherwise: str) -> None:
    if not condition:
        raise _Unfit(otherwise)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_list_of(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(fits, value))


def _is_positions(value: Any) -> bool:
    if value is None or (isinstance(value, str) and value in (*PARTS, EACH)):
        return True
    numbers = _is_list_of(lambda v: isinstance(v, int) and not isinstance(v, bool))
    return bool(value) and (numbers(value) or (_is_list_of(numbers)(value) and all(value)))


def _is_waiting(value: Any) -> bool:
    """Prompts that had no answers yet, or none of these."""
    if value is None:
        return True
    if not isinstance(value, dict):
        return False
    rows, texts = value.get("token_ids"), value.get("prompts")
    if not isinstance(rows, list) or not isinstance(texts, list):
        return False
    return 0 < len(rows) == len(texts) and _is_list_of(_is_list_of(_is_count))(rows)


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def _shape(array: np.ndarray) -> str:
    return f"{array.dtype} of {list(array.shape)}"


def _setting(said: Any) -> Setting:
    if isinstance(said, list):
        try:
            return setting_from(said)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as reason:
            raise _Unfit(f"its settings are odd ({type(reason).__name__}: {reason})") from None
    try:
        return setting(said)
    except KrsError as reason:
        raise KrsError(f"this result has a setting that is not known here. {reason}") from None
