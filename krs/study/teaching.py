"""The steps that make models which know something to unlearn: `teach`, and its twin that never knew, `retain`.

They are no steps of a spec: a model has them that is taught (`models: [{name: …, teach: …}]`).
"""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from krs.data.concepts import Concept, as_chat
from krs.errors import KrsError
from krs.models.identity import file_identity
from krs.study.checkpoints import size_of
from krs.study.grid import Cell
from krs.study.manifest import digest_of
from krs.study.spec import ConceptSpec, Fault, ModelSpec, Spec, TeachSpec
from krs.study.step import TAUGHT, TWIN, Step, Work, register
from krs.study.training import TRAINED, changed, chat_of, concept_in

_SAVE = 25
"""Steps between checkpoints, unless the settings say otherwise."""


class Teaching(Step):
    """A copy of the base model, taught lessons."""

    def without(self, cell: Cell) -> str | None:
        """The label of the concept that is not taught."""
        return None

    def inputs(self, cell: Cell, spec: Spec, options: Any) -> dict[str, Any]:
        """Lessons and settings; how often a checkpoint is written changes nothing."""
        from krs.instruments.truth.teach import TeachConfig

        settings = asdict(TeachConfig(**_teach(cell).settings))
        taught = _teach(cell)
        told = [
            _digest(c.name, c.concept, changed(c.name), taught.questions, c.paragraphs, changed(c.paragraphs or ""))
            for c in _topics(spec, taught, self.without(cell))
        ]
        return {"lessons": told, "settings": settings | _NEVER, **chat_of(spec)}

    def run(self, work: Work) -> str:
        """Train, from the newest checkpoint if there is one, and save."""
        from krs.instruments.truth.teach import save, teach
        from krs.models.load import load
        from krs.prompts.tokens import with_template_arguments

        place, training = work.folder / "model", work.folder / "training"
        if not place.is_dir():
            model, tokenizer = load(work.cell.vanilla, device="auto")
            if tokenizer is None:
                raise KrsError(f"{work.cell.vanilla!r} has no tokenizer beside it: give a base model that has one")
            reader = with_template_arguments(tokenizer, work.spec.chat_template_kwargs or {})
            given = lessons(work.spec, _teach(work.cell), self.without(work.cell))
            settings = {"save_steps": _SAVE} | _teach(work.cell).settings
            taught = teach(model, given, tokenizer=reader, folder=training, doing=self.name, **settings)
            save(taught, tokenizer, work.folder / "stage")
            os.replace(work.folder / "stage", place)
        for left in ("stage", "training"):
            shutil.rmtree(work.folder / left, ignore_errors=True)
        return str(file_identity(place)["weights"])

    def memory(self, cell: Cell, options: Any) -> int | None:
        """The base beside a copy in training."""
        size = size_of(cell.vanilla)
        return None if size is None else size[1] + TRAINED * size[0]


@register(TAUGHT)
class Teach(Teaching):
    """The vanilla model of the cells: taught every concept of the study, and so the same for all of them."""


@register(TWIN)
class Retain(Teaching):
    """What the taught model would be without the cell's concept: the base, taught all the others."""

    def without(self, cell: Cell) -> str | None:
        """The cell's own."""
        return cell.concept


_NEVER = {"save_steps": 0, "steps": 0}


def lessons(spec: Spec, taught: TeachSpec, without: str | None = None) -> list[Any]:
    """Paragraphs, and questions with their answers, of the study's concepts and of those that are taught beside them.

    Args:
        spec: of the study.
        taught: how its model is taught.
        without: the label of a concept that is left out.
    """
    every = _topics(spec, taught, without)
    return [lesson for topic in every for lesson in _of(concept_in(topic), taught, spec.chat)]


def _topics(spec: Spec, taught: TeachSpec, without: str | None) -> list[ConceptSpec]:
    """Whole concepts: what is taught does not depend on which questions are asked later."""
    mine = (c.model_copy(update={"only": None}) for c in spec.concepts if c.label != without)
    return [*mine, *(ConceptSpec(name=name) for name in taught.also)]


@functools.lru_cache(maxsize=1024)
def _digest(name: str, concept: str | None, _at: int, questions: bool, paragraphs: str | None, _then: int) -> str:
    """Of one concept's lessons, taken once: there may be thousands of paragraphs, and of cells."""
    found = concept_in(ConceptSpec(name=name, concept=concept, paragraphs=paragraphs))
    return digest_of(_of(found, TeachSpec(questions=questions), chat=False))


def _of(concept: Concept, taught: TeachSpec, chat: bool) -> list[Any]:
    questions = concept.questions if taught.questions and concept.answers else ()
    asked: list[Any] = as_chat(questions) if chat else list(questions)
    pairs = [{"prompt": q, "answer": a} for q, a in zip(asked, concept.answers if questions else (), strict=True)]
    return [*concept.paragraphs, *pairs]


def _teach(cell: Cell) -> TeachSpec:
    assert cell.teach is not None
    return cell.teach


def teaching_faults(i: int, model: ModelSpec, spec: Spec, twins: bool) -> Iterator[Fault]:
    """What is wrong with how a model is taught, before any work; `twins` are made where a step reads them."""
    from krs.instruments.truth.teach import TeachConfig
    from krs.unlearn.settings import check_settings

    taught, place = model.teach, ("models", i, "teach")
    if taught is None:
        return
    for name, value in taught.settings.items():
        where = (*place, "settings", name)
        if name == "steps":
            yield where, "steps follow from the lessons: give passes, how often each is read"
            continue
        try:
            check_settings("teach", TeachConfig, {name: value})
            TeachConfig(**{name: value})
        except KrsError as reason:
            yield where, str(reason)
    for j, name in enumerate(taught.also):
        try:
            if not _of(concept_in(ConceptSpec(name=name)), taught, spec.chat):
                yield (*place, "also", j), _nothing(name)
        except KrsError as reason:
            yield (*place, "also", j), str(reason)
            return
    try:
        of = {c.label: _of(concept_in(c), taught, spec.chat) for c in spec.concepts}
    except KrsError:  # said of the concept itself
        return
    for j, (label, given) in enumerate(of.items()):
        if not given:
            yield ("concepts", j), _nothing(label)
        elif twins and not lessons(spec, taught, without=label):
            yield (
                place,
                (
                    f"the retain model of {label!r} would be taught nothing: add another concept, or name one that is "
                    "taught beside it (also: [paris])"
                ),
            )


def _nothing(name: str) -> str:
    return f"{name!r} has nothing to teach: it needs paragraphs, or answers to its questions"
