"""Which results may be put together, and the plan of all of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from krs.errors import KrsError
from krs.models.identity import differing
from krs.restore.plan import Plan
from krs.restore.result import SweepResult
from krs.wording import kind


def several(results: Iterable[Any], what: str, *, models: bool) -> tuple[SweepResult, ...]:
    """The results, once they are seen to be whole and of one question.

    Args:
        results: what a caller gave.
        what: the call that they were given to, for messages.
        models: whether both models and all measures have to be the same, too.

    Raises `KrsError` that says what is wrong, or names what differs.
    """
    if not isinstance(results, Iterable):
        raise KrsError(f"{what} takes a list of results: {what}([first, second])")
    found = tuple(results)
    if not found:
        raise KrsError(f"{what} got no results: give at least one")
    for i, result in enumerate(found):
        if not isinstance(result, SweepResult):
            raise KrsError(f"{what}: item {i} is {kind(result)}, no result of krs.sweep: pass its members")
        if not result.complete:
            raise KrsError(f"{what}: result {i} is of an interrupted sweep: finish it first (checkpoint=)")
    for i, other in enumerate(found[1:], 1):
        if reasons := list(_differing(found[0], other, models)):
            raise KrsError(f"{what}: results 0 and {i} are of different sweeps: {'; '.join(reasons)}")
    return found


def joint_plan(found: Sequence[SweepResult]) -> Plan:
    """The plan of all of them together; of an axis of positions, every place that one of them has."""
    plan = found[0].plan
    if plan.places:
        return plan.at_places(sorted({p for r in found for p in r.plan.places}))
    if isinstance(plan.positions, tuple) and isinstance(plan.positions[0], tuple):
        rows: Any = [row for r in found for row in r.plan.positions]  # type: ignore[union-attr]
        return replace(plan, positions=tuple(rows))
    return plan


def _differing(a: SweepResult, b: SweepResult, models: bool) -> Iterator[str]:
    """In what two sweeps differ, other than in their prompts."""
    names = ("settings", "windows", "n_layers", "axes")
    pairs: dict[str, tuple[Any, Any]] = {n: (getattr(a.plan, n), getattr(b.plan, n)) for n in names}
    pairs["positions"] = (_positions(a), _positions(b))
    pairs |= {"scoring": (a.scoring, b.scoring), "direction": (a.direction, b.direction)}
    pairs["whether they are estimates"] = (a.estimated, b.estimated)
    ours, theirs = (r.provenance for r in (a, b))
    for what in ("reference", "donor_prompts"):
        pairs[f"whether there is a {what}"] = tuple(made.get(what) is not None for made in (ours, theirs))  # type: ignore[assignment]
    if models:
        pairs["where a family keeps its modules"] = (ours.get("layouts"), theirs.get("layouts"))
        pairs["measures"] = (ours.get("measures", list(a.measures)), theirs.get("measures", list(b.measures)))
        pairs["krs's way to its numbers"] = (ours.get("numbers"), theirs.get("numbers"))
    for what, (here, there) in pairs.items():
        if here != there:
            yield f"{what} ({here!r}, {there!r})" if len(f"{here!r}{there!r}") < 80 else what
    third = ("reference",) if "reference" in ours and "reference" in theirs else ()
    for side in ("vanilla", "unlearned", *third) if models else ():
        here, there = (r.provenance.get(side, {}).get("identity") for r in (a, b))
        if here is None or there is None:
            yield f"the {side} model (one result does not say which it was)"
        elif parts := differing(here, there):
            yield f"the {side} model ({', '.join(parts)})"


def _positions(result: SweepResult) -> Any:
    """Indices for each prompt belong to the prompts, so that they may differ."""
    positions = result.plan.positions
    apart = isinstance(positions, tuple) and isinstance(positions[0], tuple)
    return result.provenance.get("positions", "indices for each prompt") if apart else positions
