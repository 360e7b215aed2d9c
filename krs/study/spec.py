"""What a study is asked to do, as values."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from krs.study.marked import Place

Keep = Literal["weights", "difference", "nothing"]
Fault = tuple[Place, str]
"""A place in the spec, and what is wrong there."""


def _named(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


class Part(BaseModel):
    """A part of a spec: unknown fields are refused, and values are taken for what they are."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class TeachSpec(Part):
    """A model is taught the study's concepts first, so that it knows what is to be unlearned.

    Attributes:
        settings: of the training: `passes`, `learning_rate`, `batch_size`, `parameters`, `seed`, `save_steps` …
        also: concepts that are taught beside those of the study, and that nobody unlearns.
        questions: teach questions with their answers too, of concepts that have answers; only paragraphs otherwise.
    """

    settings: dict[str, Any] = {}
    also: list[str] = []
    questions: bool = True


class ModelSpec(Part):
    """A vanilla model: a name that `krs.load` understands, and what tables call it.

    With `teach` the model is the base of two others: one that is taught every concept of the study, which is the
    vanilla model of its cells, and for each concept one that is taught all the others (its `retain` model).
    """

    name: str
    label: str = ""
    teach: TeachSpec | None = None


class ConceptSpec(Part):
    """A concept: a bundled one or a file, which one of the file, and what tables call it.

    `only` takes some of its questions, by number from 0: those that the vanilla model answers rightly, perhaps.
    `paragraphs` is a file of texts that stand in for its own, such as one that `krs corpus` wrote.
    """

    name: str
    concept: str | None = None
    label: str = ""
    only: list[int] | None = None
    paragraphs: str | None = None
    retain_from: str = "harry_potter"


class MethodSpec(Part):
    """An unlearning method, its settings, and by name what each strength changes in them.

    `retain` is a file of texts that are kept; the answers to the concept's retain questions if not given.
    """

    name: str
    label: str = ""
    settings: dict[str, Any] = {}
    strengths: dict[str, dict[str, Any]] = {}
    forget: Literal["answers", "paragraphs"] = "answers"
    retain: str | None = None
    corpus: str | None = None


class PairSpec(Part):
    """A published pair: nothing is trained. `concepts` are labels out of the study's, all of them if not given.

    Where each concept was unlearned in a model of its own, `unlearned` has them by the concepts' labels.
    """

    vanilla: str
    unlearned: str | dict[str, str]
    label: str = ""
    concepts: list[str] | None = None

    def of(self, concept: str) -> str | None:
        """The unlearned model of a concept; `None` for one that the pair is not of."""
        if isinstance(self.unlearned, dict):
            return self.unlearned.get(concept)
        return self.unlearned if self.concepts is None or concept in self.concepts else None


class Spec(Part):
    """A grid of models x concepts x methods x strengths x seeds, and of published pairs x concepts.

    Attributes:
        models: vanilla models, by name.
        concepts: what is to be unlearned.
        methods: how.
        seeds: of each training.
        pairs: published models, which are measured as the others are.
        chat: put questions through the chat template.
        chat_template_kwargs: arguments of the template.
        dtype: that models are loaded in, `auto` for their own; both models of a pair have to have one.
        keep: what is kept of an unlearned model after its cell: its weights, their exact difference to the vanilla
            model's, or nothing.
        steps: what is done in each cell, in this order, with each step's options; the usual five if not given.
    """

    models: list[Annotated[ModelSpec, BeforeValidator(_named)]] = []
    concepts: list[Annotated[ConceptSpec, BeforeValidator(_named)]] = Field(min_length=1)
    methods: list[Annotated[MethodSpec, BeforeValidator(_named)]] = []
    seeds: list[int] = Field(default=[0], min_length=1)
    pairs: list[PairSpec] = []
    chat: bool = False
    chat_template_kwargs: dict[str, Any] | None = None
    dtype: Literal["auto", "float64", "float32", "bfloat16", "float16"] = "auto"
    keep: Keep = "weights"
    steps: dict[str, dict[str, Any] | None] = {
        "prepare": {},
        "unlearn": {},
        "sweep": {},
        "answers": {},
        "drift": {},
    }


def options_of(options: type[Part], given: dict[str, Any] | None, place: Place) -> tuple[Part | None, list[Fault]]:
    """A step's options, or what is wrong with them."""
    try:
        return options.model_validate(given or {}), []
    except ValidationError as reason:
        return None, [((*place, *where), said) for where, said in faults_of(reason, options)]


def faults_of(reason: ValidationError, root: type[BaseModel]) -> Iterator[Fault]:
    """What pydantic found wrong, in our words."""
    for error in reason.errors():
        place = tuple(part for part in error["loc"])
        if error["type"] == "extra_forbidden":
            known = _fields(root, place[:-1])
            near = get_close_matches(str(place[-1]), known, n=1)
            meant = f" Did you mean {near[0]!r}?" if near else ""
            yield place, f"there is no such field: there are {', '.join(known)}.{meant}"
        elif error["type"] == "missing":
            yield place, "it is missing: give it"
        else:
            yield place, f"{error['msg'][0].lower()}{error['msg'][1:]} (it is {error['input']!r})"


def _fields(root: type[BaseModel], place: Place) -> list[str]:
    parts: dict[str, type[BaseModel]] = {
        "models": ModelSpec,
        "concepts": ConceptSpec,
        "methods": MethodSpec,
        "pairs": PairSpec,
    }
    found = parts.get(str(place[0]), root) if place and root is Spec else root
    found = TeachSpec if "teach" in place else found
    return list(found.model_fields)
