"""Steps beside the usual ones: how models go on with a concept's texts, and its value vectors as tokens."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field

from krs.data.concepts import Concept
from krs.errors import KrsError
from krs.study.grid import Cell
from krs.study.manifest import digest_of
from krs.study.measuring import Measuring
from krs.study.spec import Fault, Part, Spec
from krs.study.step import Work, register
from krs.study.tables import written as csv_text
from krs.study.training import concept_in, concept_of, dtype_of
from krs.writing import write_text


class CompletionsOptions(Part):
    """As the arguments of `krs.metrics.text_completion`; which of the concept's texts, and how many of them."""

    texts: Literal["completions", "paragraphs"] = "completions"
    count: int | None = Field(default=None, gt=0)
    n_tokens: int = Field(default=50, gt=0)
    bleu: Literal["sacrebleu", "paper-code"] = "sacrebleu"


@register("completions")
class Completions(Measuring):
    """How both models go on with texts about the concept."""

    needs = ("unlearn",)
    options = CompletionsOptions

    def check(self, spec: Spec, options: Any) -> Iterator[Fault]:
        """Whether every concept has such texts."""
        for label in _without(spec, lambda concept: bool(_texts(concept, options))):
            yield ("texts",), f"{label!r} has no {options.texts}: give a concept that has some, or other texts"

    def inputs(self, cell: Cell, spec: Spec, options: Any) -> dict[str, Any]:
        """The texts and how they are compared; no chat template comes in."""
        how = {"n_tokens": options.n_tokens, "bleu": options.bleu}
        return {"texts": digest_of(_texts(concept_of(cell), options)), **how, **dtype_of(spec)}

    def run(self, work: Work) -> str:
        """Write completions.json (as answers are kept) and completions.csv."""
        from krs.metrics import text_completion

        found = text_completion(
            work.vanilla,
            work.unlearned,
            _texts(concept_of(work.cell), work.options),
            n_tokens=work.options.n_tokens,
            bleu=work.options.bleu,
            checkpoint=work.folder / "completions.json",
            **dtype_of(work.spec),
        )
        table = csv_text(found.frame)
        write_text(work.folder / "completions.csv", table)
        return digest_of([table, found.token_ids])


class VocabularyOptions(Part):
    """As the arguments of `krs.metrics.vocabulary`; `where` is the concept's value vector, or those that moved most."""

    where: Literal["concept", "moved"] = "moved"
    count: int = Field(default=10, gt=0)
    top: int = Field(default=10, gt=0)
    norm: bool = False


@register("vocabulary")
class Vocabulary(Measuring):
    """Value vectors as tokens, before and after."""

    needs = ("unlearn",)
    options = VocabularyOptions

    def check(self, spec: Spec, options: Any) -> Iterator[Fault]:
        """Whether every concept says which value vector carries it, where that is asked for."""
        if options.where == "concept":
            for label in _without(spec, lambda concept: None not in (concept.layer, concept.unit)):
                yield ("where",), f"{label!r} has no layer and unit: give where: moved"

    def inputs(self, cell: Cell, spec: Spec, options: Any) -> dict[str, Any]:
        """Options, and the concept's place."""
        concept = concept_of(cell)
        return (
            dtype_of(spec)
            | options.model_dump()
            | ({"place": [concept.layer, concept.unit]} if options.where == "concept" else {})
        )

    def run(self, work: Work) -> str:
        """Write vocabulary.json and vocabulary.csv."""
        from krs.metrics import vocabulary

        options = work.options.model_dump()
        where: Any = concept_of(work.cell) if options.pop("where") == "concept" else "moved"
        found = vocabulary(work.vanilla, work.unlearned, where, **options, **dtype_of(work.spec))
        found.save(work.folder / "vocabulary.json", overwrite=True)
        table = csv_text(found.to_frame().drop(columns="concept"))  # the cell has one of its own
        write_text(work.folder / "vocabulary.csv", table)
        return digest_of(table)


def _texts(concept: Concept, options: Any) -> list[Any]:
    return list(getattr(concept, options.texts))[: options.count]


def _without(spec: Spec, has: Any) -> Iterator[str]:
    """Labels of the concepts that lack something; what cannot be read is said elsewhere."""
    for topic in spec.concepts:
        try:
            if not has(concept_in(topic)):
                yield topic.label
        except KrsError:
            continue
