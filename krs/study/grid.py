"""The cells of a study: one combination each of model, concept, method, strength and seed, or a published pair."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from krs.errors import KrsError
from krs.study.spec import ConceptSpec, MethodSpec, Spec, TeachSpec

DEFAULT = "default"
PUBLISHED = "published"


@dataclass(frozen=True)
class Cell:
    """One cell. `model`, `concept`, `method` and `strength` are labels; the rest is what they stand for.

    Attributes:
        vanilla: the vanilla model's name.
        unlearned: a published unlearned model's name; `None` where the cell makes its own.
        recipe: the method's spec; `None` for a published pair.
        settings: of the method, with what the strength changes.
        topic: the concept's spec.
        teach: how the vanilla model is taught before everything else; `None` where it is taken as it is.
    """

    model: str
    concept: str
    method: str
    strength: str
    seed: int | None
    vanilla: str
    topic: ConceptSpec
    unlearned: str | None = None
    recipe: MethodSpec | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    teach: TeachSpec | None = None

    @property
    def name(self) -> str:
        """What it is called: in commands, in tables, and on the disk."""
        parts = [self.model, self.concept, self.method, self.strength]
        return "--".join(map(slug, parts + ([] if self.seed is None else [f"s{self.seed}"])))

    @property
    def where(self) -> dict[str, Any]:
        """Its place in the grid, as tables have it."""
        return {k: v for k, v in asdict(self).items() if k in ("model", "concept", "method", "strength", "seed")}


def cells(spec: Spec) -> Iterator[Cell]:
    """All cells in the grid's order, one after the other (a study may have very many)."""
    for model in spec.models:
        for concept in spec.concepts:
            for method in spec.methods:
                for strength, changes in (method.strengths or {DEFAULT: {}}).items():
                    for seed in spec.seeds:
                        yield Cell(
                            model.label,
                            concept.label,
                            method.label,
                            strength,
                            seed,
                            model.name,
                            concept,
                            recipe=method,
                            settings=method.settings | changes,
                            teach=model.teach,
                        )
    labels = labels_of_models(spec)
    for pair in spec.pairs:
        for concept in spec.concepts:
            if (unlearned := pair.of(concept.label)) is not None:
                model_label = labels[pair.vanilla]
                yield Cell(model_label, concept.label, pair.label, PUBLISHED, None, pair.vanilla, concept, unlearned)


def labels_of_models(spec: Spec) -> dict[str, str]:
    """What tables call each vanilla model; those of pairs go by the last part of their name, or by all of it where
    another model goes by that."""
    labels = {model.name: model.label for model in spec.models}
    for pair in spec.pairs:
        if pair.vanilla not in labels:
            last = pair.vanilla.rstrip("/").rpartition("/")[2]
            taken = {slug(label) for label in labels.values()}
            labels[pair.vanilla] = pair.vanilla if slug(last) in taken else last
    return labels


def n_cells(spec: Spec) -> int:
    """How many there are."""
    own = sum(len(m.strengths) or 1 for m in spec.methods) * len(spec.models) * len(spec.concepts) * len(spec.seeds)
    return own + sum(p.of(c.label) is not None for p in spec.pairs for c in spec.concepts)


def cell_named(spec: Spec, name: str) -> Cell:
    """A cell by its name, or by a beginning that only one has; raises `KrsError` for any other."""
    found = [cell for cell in cells(spec) if cell.name.startswith(name)]
    exact = [cell for cell in found if cell.name == name]
    if len(exact or found) != 1:
        what = "several cells begin with" if found else "there is no cell"
        some = ", ".join(cell.name for cell, _ in zip(found or cells(spec), range(3), strict=False))
        raise KrsError(f"{what} {name!r}: give one such as {some}; krs study status lists them")
    return (exact or found)[0]


def slug(text: str) -> str:
    """A label as a file's name.

    >>> slug("Harry Potter / 2")
    'harry-potter-2'
    """
    return re.sub(r"[^a-z0-9._]+", "-", text.lower()).strip("-.") or "x"
