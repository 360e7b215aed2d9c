"""One result over the prompts of several: `krs.concat`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from krs.metrics.measures import LOGIT_MSE
from krs.models.provenance import now
from krs.restore.alike import joint_plan, several
from krs.restore.losses import Losses, Measured
from krs.restore.plan import Plan
from krs.restore.result import SweepResult


def concat(results: Iterable[SweepResult]) -> SweepResult:
    """One result over the prompts of several, such as those of several concepts, as if they had been one sweep.

    >>> import krs
    >>> vanilla, _ = krs.load("smollm2")
    >>> unlearned, _ = krs.load("smollm2")
    >>> _ = unlearned.model.layers[29].mlp.up_proj.weight.data.mul_(1.5)
    >>> ask = {"settings": "resid", "windows": krs.windows.of([[29]]), "n_tokens": 2, "progress": False}
    >>> parts = [krs.sweep(vanilla, unlearned, [prompt], **ask) for prompt in ("Hogwarts is a", "The sun is")]
    >>> len(krs.concat(parts).prompts)
    2

    Every number is taken as it is; means, recoveries and intervals are over all scored tokens of all prompts, so that
    a result with more of them weighs more. `krs.mean` weighs results alike.

    Raises `KrsError` that names what differs unless plan, scoring, measures, direction and both models are the same.
    """
    found = several(results, "krs.concat", models=True)
    plan = joint_plan(found)
    made: dict[str, Any] = found[0].provenance | {"made_by": "krs.concat", "time": now()}
    parts, numbers = _parts(found, plan)
    made["parts"] = parts
    made["notes"] = list(dict.fromkeys(n for r in found for n in r.provenance.get("notes", [])))
    for what in ("donor_prompts", "subjects"):
        if all(r.provenance.get(what) is not None for r in found):
            made[what] = [one for r in found for one in r.provenance[what]]
    made["engine"] = " and ".join(dict.fromkeys(str(r.provenance.get("engine", "?")) for r in found))
    made["seconds"] = round(sum(r.provenance.get("seconds", 0.0) for r in found), 1)
    digests = [r.provenance.get("tokens_sha256") for r in found]
    made["tokens_sha256"] = hashlib.sha256(json.dumps(digests).encode()).hexdigest()
    made["of"] = [
        {"time": r.provenance.get("time"), "prompts": len(r.losses.mask), "tokens_sha256": digest}
        for r, digest in zip(found, digests, strict=True)
    ]
    return SweepResult(
        plan,
        _joint_losses(found, plan),
        found[0].scoring,
        _joined(r.prompts for r in found),
        _joined(r.answers for r in found),
        made,
        numbers,
        _joined(r.token_ids for r in found),
        _joined(r.pieces for r in found),
        np.concatenate([r.reach for r in found]) if all(r.reach is not None for r in found) else None,
    )


def _joint_losses(found: Sequence[SweepResult], plan: Plan) -> Losses:
    width = max(r.losses.mask.shape[1] for r in found)

    def wide(values: np.ndarray, fill: Any) -> np.ndarray:
        missing = [(0, 0)] * (values.ndim - 1) + [(0, width - values.shape[-1])]
        return np.pad(values, missing, constant_values=fill)

    def joined(measure: str) -> Measured:
        restored = np.concatenate([wide(_at_places(r, measure, plan), np.nan) for r in found], axis=1)
        sides = [
            np.concatenate([wide(getattr(r.losses.of(measure), side), np.nan) for r in found])
            for side in ("recipient", "donor")
        ]
        return Measured(restored, *sides)

    first = joined(LOGIT_MSE.name)
    power = np.concatenate([wide(r.losses.power, np.nan) for r in found])
    mask = np.concatenate([wide(r.losses.mask, False) for r in found])
    more = {name: joined(name) for name in found[0].losses.measured}
    return Losses(first.restored, first.recipient, power, mask, first.donor, more)


def _at_places(result: SweepResult, measure: str, plan: Plan) -> np.ndarray:
    """Numbers at every place of the joint plan; where none of the prompts has one, as with nothing restored."""
    kept, places = result.losses.of(measure), result.plan.places
    if places == plan.places:
        return kept.restored
    per_window = kept.restored.reshape(-1, len(places), *result.losses.mask.shape)
    found = np.broadcast_to(kept.recipient, (len(per_window), len(plan.places), *kept.recipient.shape)).copy()
    found[:, [plan.places.index(p) for p in places]] = per_window
    return found.reshape(-1, *kept.recipient.shape)


def _parts(found: Sequence[SweepResult], plan: Plan) -> tuple[list[Any], np.ndarray | None]:
    """Which run computed what, in the numbers of all parts together."""
    if any(r.part is None for r in found):
        return [], None
    parts: list[Any] = []
    numbers = []
    for r in found:
        assert r.part is not None
        own = np.where(r.part < 0, -1, r.part + len(parts)).astype(np.int16)
        if r.plan.places != plan.places:
            where = [plan.places.index(p) for p in r.plan.places]
            wider = np.full((len(own) // len(where), len(plan.places), own.shape[1]), own.max(initial=-1), np.int16)
            wider[:, where] = own.reshape(len(wider), len(where), -1)
            own = wider.reshape(len(plan), -1)
        numbers.append(own)
        parts += r.provenance.get("parts", [])
    return parts, np.concatenate(numbers, axis=1)


def _joined(rows: Iterable[tuple[Any, ...]]) -> tuple[Any, ...]:
    """What all results say of their prompts; nothing where one of them says nothing."""
    listed = list(rows)
    return tuple(x for row in listed for x in row) if all(listed) else ()
