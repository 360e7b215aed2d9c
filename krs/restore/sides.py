"""The models of a sweep: loaded, checked against each other, described."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from krs._typing import Tokenizer
from krs.errors import KrsError
from krs.hooks.anatomy import Anatomy
from krs.models.given import Model
from krs.models.pair import Vocabulary, check_pair, check_reference, shared_ids, shared_rows
from krs.models.provenance import describe_model
from krs.prompts import Ids, Scoring, TokenBatch, check_reach
from krs.restore.plan import Plan
from krs.restore.prepare import check_tokens, donor_batch_of, resolve


@dataclass(frozen=True, eq=False)
class Sides:
    """Who is who.

    Attributes:
        vanilla: the donor where something is restored.
        unlearned: the recipient then.
        reference: what results are compared with, and whose answers are scored: the vanilla model, or a third one.
        given: what the caller passed, by side.
    """

    vanilla: Anatomy
    unlearned: Anatomy
    reference: Anatomy
    given: Mapping[str, Model]

    @property
    def has_third(self) -> bool:
        """Whether the reference is neither of the two."""
        return self.reference is not self.vanilla

    @property
    def reference_name(self) -> str:
        """What messages call the reference."""
        return "reference" if self.has_third else "vanilla"

    @property
    def n_ids(self) -> int:
        """How many token ids, from the first one on, all of them can say and read."""
        v = self.vanilla.model
        return min(shared_ids(v, self.unlearned.model), shared_ids(v, self.reference.model))

    def check_tokens(
        self,
        plan: Plan,
        ids: tuple[Ids, ...],
        n_tokens: int,
        answers: tuple[Ids, ...] | None,
        donor_ids: tuple[Ids, ...] | None,
    ) -> None:
        """Raise `KrsError` for ids that some model does not have, prompts longer than its context, positions beyond."""
        check_reach(plan.positions, ids, n_tokens)
        for body in {id(b): b for b in (self.vanilla, self.reference)}.values():
            check_tokens(ids, n_tokens, body, answers, self.n_ids)
        if donor_ids is not None:
            check_tokens(donor_ids, n_tokens, self.vanilla, answers, self.n_ids)
            donor_batch_of(
                plan, TokenBatch(ids, tuple(map(len, ids)), tuple((len(row) - 1,) for row in ids)), donor_ids
            )

    def described(self) -> dict[str, Any]:
        """For provenance."""
        bodies = {"vanilla": self.vanilla, "unlearned": self.unlearned, "reference": self.reference}
        v = self.vanilla.model
        rows = min(shared_rows(v, body.model) for body in bodies.values())
        return {"vocabulary_rows": rows} | {s: describe_model(one, bodies[s].model) for s, one in self.given.items()}


def load_sides(
    vanilla: Model,
    unlearned: Model,
    reference: Model | None,
    prompts: Sequence[Any],
    tokenizer: Tokenizer | str | Path | None,
    scoring: Scoring,
    vocabulary: Vocabulary,
    direction: str,
    **where: Any,
) -> tuple[Sides, Tokenizer | None]:
    """Load what is given by name (`where` as in `load_given`), check it, and find a tokenizer if prompts need one."""
    if direction not in ("restore", "transplant"):
        raise KrsError(f"direction={direction!r}: choose 'restore' or 'transplant'")
    if reference is not None and direction != "restore":
        raise KrsError("direction='transplant' has its reference, the vanilla model: use krs.patch_sweep for another")
    given = {"vanilla": vanilla, "unlearned": unlearned} | ({} if reference is None else {"reference": reference})
    models, chosen = resolve(given, prompts, tokenizer, scoring, vocabulary, **where)
    v, u = check_pair(models[0], models[1], vocabulary)
    r = v if reference is None else check_reference(models[2], (v, u), vocabulary)
    return Sides(v, u, r, given), chosen
