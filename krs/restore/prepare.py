"""What a sweep settles before any model runs: models, tokenizer, and whether the prompts fit."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, TypeAlias

from krs._typing import Positions, Tokenizer
from krs.errors import KrsError
from krs.generation.fits import check_fits
from krs.generation.greedy import eos_ids
from krs.hooks.anatomy import Anatomy
from krs.hooks.points import Each, Point, Setting, WeightPoint
from krs.hooks.unwrap import core
from krs.hooks.weights import refuse_unlike
from krs.metrics.measures import Measure
from krs.metrics.score import SCORINGS
from krs.models.given import Model
from krs.models.resolve import resolve
from krs.prompts import (
    Ids,
    Prompts,
    Scoring,
    TokenBatch,
    check_aligned,
    check_prompts,
    next_token_batch,
    paper_code_batch,
    subject_positions,
)
from krs.prompts.listed import whole
from krs.restore.engines import check_engine, check_plan, engine_names, is_engine
from krs.restore.plan import EACH, Plan
from krs.wording import counted

__all__ = ["Engine", "Model", "Offload", "batch_of", "check_choices", "check_tokens", "resolve"]

Engine: TypeAlias = str
Offload: TypeAlias = Literal["disk"]


def check_choices(scoring: str, engine: str, n_tokens: int, direction: str, measures: Sequence[Measure] = ()) -> None:
    """Raise `KrsError` for a scoring, an engine or a direction that there is not, for no tokens to score, and for
    measures that the engine or the scoring cannot take.
    """
    if direction not in ("restore", "transplant"):
        raise KrsError(f"direction={direction!r}: choose 'restore' or 'transplant'")
    if scoring not in SCORINGS:
        raise KrsError(f"scoring={scoring!r}: choose one of {', '.join(map(repr, SCORINGS))}")
    if not is_engine(engine):
        names = ", ".join(map(repr, engine_names()))
        raise KrsError(f"engine={engine!r}: choose one of {names}, or register yours (krs.restore.register_engine)")
    if whole(n_tokens, "n_tokens") < 1:
        raise KrsError(f"n_tokens={n_tokens}: at least one answer token has to be scored")
    of_answer = [m.name for m in measures if m.of_answer]
    if of_answer and scoring == "paper-code":
        raise KrsError(
            f"measures={of_answer[0]!r} looks at the answer's tokens, and scoring='paper-code' scores the logits after "
            "the last one too, which predict none: use scoring='next-token'"
        )
    check_engine(engine, measures)


def check_tokens(
    ids: tuple[Ids, ...],
    n_tokens: int,
    body: Anatomy,
    answers: tuple[Ids, ...] | None = None,
    rows: int | None = None,
) -> None:
    """Raise `KrsError` for ids outside the vocabulary (or its first `rows`) and prompts longer than the context."""
    check_fits(ids, n_tokens, body.model, answers, rows)


def of_subjects(
    subjects: Sequence[str], positions: Any, prompts: Sequence[Any], ids: tuple[Ids, ...], tokenizer: Tokenizer | None
) -> tuple[Ids, ...]:
    """The positions of each prompt's subject; there is a tokenizer, for the (checked) prompts are no token ids."""
    assert tokenizer is not None
    return subject_positions(prompts, ids, subjects, tokenizer, str(positions))


def check_donor_prompts(
    prompts: Prompts | None, many: int, settings: Iterable[Setting | Each], positions: Positions
) -> list[Any] | None:
    """The donor's prompts, one for each of the recipient's; raises `KrsError` for another number of them."""
    if prompts is None:
        return None
    found = list(check_prompts(prompts))
    if len(found) != many:
        raise KrsError(
            f"donor_prompts= has {counted(len(found), 'prompt')} for {many} of the recipient: give one for each"
        )
    if positions == EACH:
        raise KrsError("donor_prompts= does not go with positions='each': name the positions, or take them in turn")
    points = [p for s in settings for p in (s.points if isinstance(s, Setting) else (s.point,))]
    if all(p.kind == "weight" for p in points):
        raise KrsError("donor_prompts= changes nothing where only weights are put: leave it out, or add an activation")
    return found


def donor_batch_of(plan: Plan, batch: TokenBatch, ids: tuple[Ids, ...] | None) -> TokenBatch | None:
    """What the donor reads; raises `KrsError` where a position that is restored has no counterpart in it."""
    if ids is None:
        return None
    found = batch.behind(ids)
    check_aligned(plan.positions, batch, found)
    return found


def check_restorations(engine: str, plan: Plan, a: Anatomy, b: Anatomy) -> None:
    """Raise `KrsError` for what the engine cannot make, and for weights that cannot go from one model to the other."""
    check_plan(engine, plan)
    check_ends(plan.points, a, b)
    check_wholes(plan.points, plan.layers, a, b)


def check_ends(points: Iterable[Point], a: Anatomy, b: Anatomy) -> None:
    """Raise `KrsError` for a weight at an end of the models that has other shapes in the two."""
    for point in points:
        if point.place != "layer":
            ours, theirs = (core(body.modules(point, None)[0])._parameters.get("weight") for body in (a, b))
            if ours is not None and theirs is not None and ours.shape != theirs.shape:
                raise KrsError(
                    f"the {point.name} is {list(ours.shape)} in one model and {list(theirs.shape)} in the other, so it "
                    "cannot go from one to the other: leave that setting out"
                )


def check_wholes(points: Iterable[Point], layers: Iterable[int], a: Anatomy, b: Anatomy) -> None:
    """Raise `KrsError` for whole modules whose parameters cannot go from one model to the other."""
    layers = tuple(layers)
    for point in points:
        if isinstance(point, WeightPoint) and point.whole:
            for layer in point.over(layers):
                refuse_unlike(a.modules(point, layer)[0], b.modules(point, layer)[0])


def batch_of(
    scoring: Scoring,
    ids: tuple[Ids, ...],
    answers: tuple[Ids, ...],
    tokenizer: Tokenizer | None,
    body: Anatomy,
) -> TokenBatch:
    """Prompts with the vanilla answers, and the positions that the scoring compares."""
    if scoring == "paper-code":
        return paper_code_batch(ids, answers, tokenizer, eos_ids(body.model))
    return next_token_batch(ids, answers)
