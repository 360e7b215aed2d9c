"""What a call of `krs.sweep` asks for, before and after its models are loaded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from krs._typing import Positions, Tokenizer
from krs.generation.greedy import pad_ids
from krs.hooks.anatomy import Anatomy
from krs.hooks.families import Family, layout
from krs.metrics.measures import Measure
from krs.models.provenance import NUMBERS, as_json, machine, now, tokenizer_name, versions
from krs.prompts import Answer, Scoring, decode, encode, encode_answers, with_template_arguments
from krs.restore.checkpoint import Asked, template_date
from krs.restore.plan import Plan, Settings
from krs.restore.prepare import of_subjects
from krs.restore.windows import Shape


@dataclass(frozen=True)
class Call:
    """The arguments of `krs.sweep` that say what is computed, checked; as it calls them where nothing is said.

    Attributes:
        prompts: checked.
        donor_prompts: likewise, where the donor reads others.
        where: `positions`, where they are not those of subjects.
        subjects: of each prompt, where `positions` are theirs.
        measures: the measures themselves.
    """

    prompts: list[Any]
    donor_prompts: list[Any] | None
    settings: Settings
    windows: int | Shape
    positions: Any
    where: Positions
    subjects: Sequence[str] | None
    answers: Iterable[Answer] | None
    n_tokens: int
    scoring: Scoring
    measures: Sequence[Measure]
    engine: str
    direction: str
    family: Family | str | None
    chat_template_kwargs: dict[str, Any]

    @property
    def reads(self) -> list[Any]:
        """All that a model reads."""
        return [*self.prompts, *(self.donor_prompts or ())]

    def of(
        self,
        bodies: Mapping[str, Anatomy],
        tokenizer: Tokenizer | None,
        ends: frozenset[int],
        described: Mapping[str, Any],
    ) -> Asked:
        """What is asked of models (skeletons serve too), by side: `reference` among them where it is a third one.

        Args:
            bodies: them.
            tokenizer: if there is one.
            ends: ids that end an answer.
            described: what provenance says of each side.
        """
        v, u, third = bodies["vanilla"], bodies["unlearned"], "reference" in bodies
        plan = Plan.make(self.settings, self.windows, n_layers=u.n_layers, positions=self.where, n_heads=u.n_heads)
        for body in (v, u):
            body.require(plan.points, plan.layers)
        reader, options = with_template_arguments(tokenizer, self.chat_template_kwargs), {"pads": pad_ids(v.model)}
        ids = encode(self.prompts, reader, ends=ends, **options)
        others = None if self.donor_prompts is None else encode(self.donor_prompts, reader, ends=ends, **options)
        given = None if self.answers is None else encode_answers(self.answers, ids, tokenizer, self.n_tokens, ends)
        if self.subjects:
            plan = replace(plan, positions=of_subjects(self.subjects, self.positions, self.prompts, ids, reader))
        layouts = {side: found for side, body in bodies.items() if (found := layout(body.family)) is not None}
        patches = self.direction == "restore" and (third or others is not None)
        made = {
            "made_by": "krs.sweep",
            "time": now(),
            "engine": self.engine,
            "family": self.family.name if isinstance(self.family, Family) else self.family,
            **({"layouts": as_json(layouts)} if layouts else {}),
            "n_tokens": self.n_tokens,
            "answers": f"{'reference' if third else 'vanilla'}, greedy" if given is None else "given",
            "ends": sorted(ends),
            "measures": [m.identity for m in self.measures],
            **({"positions": self.positions, "subjects": self.subjects} if self.subjects else {}),
            "direction": "patch" if patches else self.direction,
            "donor_prompts": None if others is None else [list(row) for row in others],
            "seed": None,
            **described,
            "tokenizer": tokenizer_name(tokenizer),
            "numbers": NUMBERS,
            "chat_template_kwargs": as_json(self.chat_template_kwargs),
            "versions": versions(),
            "machine": machine(),
        }
        texts = tuple(decode(i, tokenizer) for i in ids) if tokenizer is not None else ids
        return Asked(plan, self.scoring, ids, texts, given, made, template_date(tokenizer, self.prompts))
