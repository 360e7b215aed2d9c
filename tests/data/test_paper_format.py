"""The format in which the paper's concepts were released, and its quirks."""

from pathlib import Path

import pytest

from krs import KrsError
from krs.data import Concept, load_concept, load_concepts
from krs.data.concepts import as_chat
from krs.data.paper_format import paragraphs_of
from krs.prompts import encode
from tests.data.concept_case import PAPER, without

RELEASED = Path(__file__).parents[3] / "shared" / "data" / "llama2-7b_concepts.json"
with_released = pytest.mark.skipif(
    not RELEASED.exists(), reason="the paper's released concept file is not beside the checkout"
)


def test_the_papers_format(write):
    assert load_concept(write(PAPER)) == Concept(
        name="Emma",
        questions=("Who wrote Emma?", "Where does Emma live?"),
        unrelated_questions=("What is tea?", "What is tea?"),
        paragraphs=(("Emma is a novel. " * 7).strip(), ("Emma lives in Highbury. " * 5).strip()),
        completions=(("Emma Woodhouse is", "handsome, clever and rich"),),
        answers=("Jane Austen.\n\nQuestion: And Ulysses? Answer: James", "In Highbury."),
        answer_tokens=(20, 7),
        id=7,
        layer=3,
        unit=41,
        source="mine.json; paragraphs from Wikipedia, CC BY-SA",
    )


def test_quirks_of_the_papers_format(write):
    bare = {"Concept": "Emma", "QA": ["Who?"], "something": "else"}
    assert load_concept(write(bare)) == Concept("Emma", ("Who?",), source="mine.json")
    assert load_concept(write(bare | {"ID": 4})).id == 4
    assert load_concept(write(bare | {"ID": 4, "id": 9})).id == 9
    assert load_concept(write(bare | {"QA_with_answers": []})).answers == ()


def test_what_of_an_article_is_a_paragraph():
    def line(word):
        return (word + " ") * 60

    article = f"""{line("lead")}
== Plot ==
{line("plot")}
A caption
== Notes ==
{line("note")}
=== Books ===
{line("book")}
== Reception ==
{line("praise")}
=== See also ===
{line("see")}
=== In films ===
{line("film")}
==== References ====
{line("reference")}
== External links ==
{line("link")}"""
    assert [p.split()[0] for p in paragraphs_of(article)] == ["lead", "plot", "praise", "film"]
    assert paragraphs_of("") == ()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (without(PAPER, "QA"), r"mine.json, the concept \('Emma'\): there is no 'QA': add it, a list of strings"),
        (without(PAPER, "Concept"), "mine.json, the concept: there is no 'Concept': add it, a string"),
        (PAPER | {"QA": "Who?"}, "'QA' is a string: make it a list of strings"),
        (PAPER | {"QA": []}, "'QA' has no questions: give at least one"),
        (PAPER | {"QA": ["Who?\n", " Who?"]}, "'QA' has 'Who[?]' twice: remove one"),
        (PAPER | {"QA": ["\n", " Who?"]}, "'QA' item 1 is empty: remove it or give it a text"),
        (PAPER | {"QA": ["Who?"]}, "'QA_with_answers' has 2 items for 1 in 'QA': give one for each, or none"),
        (PAPER | {"answers_tokens_num": [1]}, "'answers_tokens_num' has 1 items for 2 in 'QA': give one for each"),
        (PAPER | {"QA_with_answers": ["Jane", "x"]}, "'QA_with_answers' item 1 has nothing behind 'Answer:': write 'Q"),
        (PAPER | {"text_completion": [{"First_half": "a"}]}, "item 1 is no pair: make 'text_completion' a list of obj"),
        (PAPER | {"wikipedia_content": ["a"]}, "'wikipedia_content' is a list: make it a string"),
        (PAPER | {"Layer": "3"}, "'Layer' is '3': make it a whole number from 0 up, or leave it out"),
    ],
)
def test_the_papers_format_where_it_is_not_right(write, fields, said):
    with pytest.raises(KrsError, match=said):
        load_concepts(write(fields))


@with_released
def test_the_released_file():
    found = load_concepts(RELEASED)
    assert len(found) == 10
    for concept in found:
        assert [len(concept.questions), len(concept.answers), len(concept.answer_tokens)] == [10, 10, 10]
        assert len(concept.unrelated_questions) == 50
        texts = concept.questions + concept.unrelated_questions + concept.answers
        assert all(text and text == text.strip() for text in texts)
        assert not any(answer.startswith("Question:") for answer in concept.answers)
        assert concept.retain_questions == ()
        assert len(concept.paragraphs) > 40
        assert not any(p.startswith("=") or len(p) < 100 for p in concept.paragraphs)
        assert None not in (concept.id, concept.layer, concept.unit)
        assert concept.source == "llama2-7b_concepts.json; paragraphs from Wikipedia, CC BY-SA"
    assert sorted(len(c.completions) for c in found) == [9] + 9 * [10]
    assert load_concept(RELEASED, concept="harry potter").id == 26
    with pytest.raises(KrsError, match=r"holds 10 concepts: say which with concept=, one of \"Valentine's Day\", 'Su"):
        load_concept(RELEASED)


@pytest.mark.real
@with_released
def test_the_papers_questions_are_prompts_as_they_are(smollm2):
    questions = load_concept(RELEASED, concept="Harry Potter").questions
    ids = encode([f"Question: {q}\n Answer:" for q in questions], smollm2[1])
    assert len(ids) == 10
    assert len(encode(as_chat(questions), smollm2[1])) == 10
