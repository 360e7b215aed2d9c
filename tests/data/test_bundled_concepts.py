"""The concepts that come with krs."""

import dataclasses
import json
import re
from pathlib import Path

import pytest

import krs
from krs.data import Concept, concepts, load_concept
from krs.data.concepts import as_chat

FOLDER = Path(krs.__file__).parent / "data"


@pytest.mark.parametrize("name", concepts())
def test_bundled_concepts_are_whole_and_their_sets_do_not_overlap(name):
    concept = load_concept(name)
    assert len(concept.questions) == len(concept.answers) == 10
    assert len(concept.retain_questions) >= 20
    assert len(concept.unrelated_questions) >= 10
    sets = [set(concept.questions), set(concept.retain_questions), set(concept.unrelated_questions)]
    assert len(set.union(*sets)) == sum(map(len, sets))
    assert concept.source == "written for krs, under its licence (Apache-2.0)"


@pytest.mark.parametrize("name", concepts())
def test_bundled_texts_are_about_the_concept_and_the_other_questions_are_not(name):
    concept = load_concept(name)
    mentions = re.compile("|".join(rf"\b{re.escape(n)}\b" for n in concept.names), re.IGNORECASE)
    assert len(concept.paragraphs) >= 8
    assert all(len(p) > 150 and mentions.search(p) for p in concept.paragraphs)
    others = concept.retain_questions + concept.unrelated_questions
    assert not [q for q in others if mentions.search(q)]
    asked_and_answered = [f"{q} {a}" for q, a in zip(concept.questions, concept.answers, strict=True)]
    assert sum(bool(mentions.search(q)) for q in concept.questions) >= 8
    assert sum(bool(mentions.search(text)) for text in asked_and_answered) >= 9


def test_the_questions_of_recorded_results_are_as_they_were():
    concept = load_concept("harry_potter")
    assert concept.questions[:2] == (
        "Who wrote the Harry Potter books?",
        "What is the name of the school that Harry Potter attends?",
    )
    assert [len(concept.questions), len(concept.retain_questions), len(concept.unrelated_questions)] == [10, 24, 10]


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "albert_einstein",
            "relativity|E=mc|physicist|1879|Nobel|United States|Special Relativity and General|General Relativity"
            "|speed of light|Einstein",
        ),
        ("paris", "Seine|Louvre|France|French|Champs-Élysées|City of Light|Euro|Gustave Eiffel|Europe|Notre-Dame"),
        (
            "solar_system",
            "Sun|Saturn|Neptune|Mercury, Venus, Earth, and Mars|Milky Way|hydrogen and helium|gravitational"
            "|elliptical|Mars|nuclear fusion",
        ),
    ],
)
def test_the_bundled_model_answers_the_questions(name, words, smollm2):
    model, tokenizer = smollm2
    questions = as_chat(load_concept(name).questions)
    answers = krs.generate(model, None, questions, tokenizer=tokenizer, n_tokens=30, progress=False)
    missed = [(a, w) for a, w in zip(answers, words.split("|"), strict=True) if w not in a]
    assert len(missed) <= 1, missed  # none where this was written; another processor may round another way


def test_the_schema_has_the_fields_of_a_concept():
    schema = json.loads((FOLDER / "concept.schema.json").read_text(encoding="utf-8"))["$defs"]["concept"]
    assert set(schema["properties"]) == {f.name for f in dataclasses.fields(Concept)} | {"$schema"}
    assert schema["required"] == ["name", "questions"]


@pytest.mark.parametrize("name", concepts())
def test_bundled_files_agree_with_the_schema(name):
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads((FOLDER / "concept.schema.json").read_text(encoding="utf-8"))
    jsonschema.validate(json.loads((FOLDER / "concepts" / f"{name}.json").read_text(encoding="utf-8")), schema)
