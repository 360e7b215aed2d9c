import dataclasses
import json
import re
from pathlib import Path

import pytest

import krs
from krs import KrsError
from krs.data import Concept, concepts, load_concept, load_concepts
from krs.data.concepts import as_chat
from krs.data.paper_format import paragraphs_of
from krs.prompts import encode

FOLDER = Path(krs.__file__).parent / "data"
RELEASED = Path(__file__).parents[3] / "shared" / "data" / "llama2-7b_concepts.json"
with_released = pytest.mark.skipif(
    not RELEASED.exists(), reason="the paper's released concept file is not beside the checkout"
)

EMMA = {"name": "Emma", "questions": ["Who wrote Emma?", "Where does Emma live?"]}
PAPER = {
    "id": 7,
    "Concept": "Emma",
    "Layer": 3,
    "Dim": 41,
    "QA": [" Who wrote Emma?\n", " Where does Emma live?"],
    "text_completion": [{"First_half": "Emma Woodhouse is", "Second_half": "handsome, clever and rich"}],
    "unrelated_QA": [" What is tea?\n", " What is tea?\n"],
    "wikipedia_content": "Emma is a novel. " * 7 + "\n\n\n== Plot ==\n\nToo short.\n" + "Emma lives in Highbury. " * 5,
    "QA_with_answers": [
        "Question: Who wrote Emma?\n Answer: Jane Austen.\n\nQuestion: And Ulysses? Answer: James",
        "Question: Where does Emma live?\n\n Answer: In Highbury.",
    ],
    "answers_tokens_num": [20, 7],
}


@pytest.fixture
def write(tmp_path):
    """Write something to a file: text as it is, anything else as JSON."""

    def write(value, name="mine.json"):
        path = tmp_path / name
        path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
        return path

    return write


def _without(fields, name):
    return {k: v for k, v in fields.items() if k != name}


# What comes with krs


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


# Files of one's own


def test_a_file_with_one_concept(write):
    everything = EMMA | {
        "$schema": "concept.schema.json",
        "aliases": ["Miss Woodhouse"],
        "answers": ["Jane Austen.", "In Highbury."],
        "answer_tokens": [4, 3],
        "retain_questions": ["What is tea?"],
        "unrelated_questions": [" What is salt?\n"],
        "paragraphs": ["Emma is a novel."],
        "completions": [["Emma Woodhouse is", "handsome"]],
        "id": 0,
        "layer": 3,
        "unit": 41,
        "source": "my own",
    }
    assert load_concept(write(everything)) == Concept(
        name="Emma",
        questions=("Who wrote Emma?", "Where does Emma live?"),
        retain_questions=("What is tea?",),
        unrelated_questions=("What is salt?",),
        paragraphs=("Emma is a novel.",),
        aliases=("Miss Woodhouse",),
        completions=(("Emma Woodhouse is", "handsome"),),
        answers=("Jane Austen.", "In Highbury."),
        answer_tokens=(4, 3),
        id=0,
        layer=3,
        unit=41,
        source="my own",
    )


def test_only_name_and_questions_are_needed(write):
    concept = load_concept(str(write(EMMA)))
    assert concept == Concept("Emma", tuple(EMMA["questions"]), source="mine.json")


@pytest.mark.parametrize("text", ["\ufeff" + json.dumps([EMMA]), json.dumps([EMMA], indent=2)])
def test_a_list_of_one_with_and_without_a_byte_order_mark(write, text):
    assert load_concept(write(text)).name == "Emma"


def test_json_lines(write):
    odd = EMMA | {"name": "A\u2028B"}
    lines = json.dumps(EMMA) + "\r\n\n" + json.dumps(odd, ensure_ascii=False) + "\n"
    assert [c.name for c in load_concepts(write(lines, "two.jsonl"))] == ["Emma", "A\u2028B"]


def test_a_concept_is_picked_by_name(write):
    path = write([EMMA, EMMA | {"name": "Straße"}, PAPER | {"Concept": "Ulysses"}])
    assert load_concept(path, concept="ulysses ").unit == 41
    assert load_concept(path, concept="STRASSE").name == "Straße"
    assert load_concept("harry_potter", concept="harry potter").name == "Harry Potter"
    assert [c.name for c in load_concepts("paris")] == ["Paris"]
    with pytest.raises(KrsError, match=r"holds 3 concepts: say which with concept=, one of 'Emma', 'Straße', 'Ulys"):
        load_concept(path)
    with pytest.raises(KrsError, match=r"mine.json has no concept 'Persuasion': there are 'Emma', 'Straße', 'Ulysses'"):
        load_concept(path, concept="Persuasion")
    with pytest.raises(KrsError, match=r"has 'Emma' 2 times: take the one you mean from load_concepts"):
        load_concept(write([EMMA, PAPER]), concept="Emma")


def test_neither_a_bundled_name_nor_a_file(tmp_path):
    said = (
        "no concept 'spam' comes with krs, and there is no such file: the bundled ones are albert_einstein, "
        "harry_potter, paris, solar_system; a file of your own ends in .json or .jsonl"
    )
    with pytest.raises(KrsError, match=f"^{said}$"):
        load_concept("spam")
    with pytest.raises(KrsError, match="there is no such file"):
        load_concepts(tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.json", "", "a.json is empty: write at least one concept into it, an object with 'name' and 'questions'$"),
        ("a.json", "[]", "a.json is empty: write at least one concept"),
        ("a.jsonl", "\n \n", "a.jsonl is empty: write at least one concept"),
        ("a.txt", "{}", r"a.txt is no concept file: its name has to end in .json or .jsonl"),
        ("a.json", '{\n"name": "Emma"\n"questions": []}', r"a.json is not valid JSON, line 3, column 1 .*: mend it"),
        ("a.json", "{}\n{}", "line 2, .*: put several objects into a list, or name the file .jsonl if it has one a li"),
        ("a.jsonl", json.dumps(EMMA) + "\n\n{", r"a.jsonl is not valid JSON, line 3, column 2 .*: mend it there"),
        ("a.json", '"Emma"', "a.json holds a string: make it an object, or a list of objects, one a concept"),
        ("a.json", json.dumps([EMMA, 3]), "a.json, concept 2 is a number: make it an object with 'name' and 'questi"),
        ("a.jsonl", json.dumps(EMMA) + "\nnull", "a.jsonl, line 2 is null: make it an object with 'name' and 'questi"),
    ],
)
def test_files_that_are_not_right(write, name, text, said):
    with pytest.raises(KrsError, match=said):
        load_concepts(write(text, name))


def test_a_file_in_another_encoding(tmp_path):
    (tmp_path / "latin.json").write_bytes('{"name": "Café"}'.encode("latin-1"))
    with pytest.raises(KrsError, match="latin.json is not UTF-8 text: save it as UTF-8"):
        load_concepts(tmp_path / "latin.json")


WRONG = [
    (_without(EMMA, "name"), "mine.json, concept 2: there is no 'name': add it, a string"),
    (_without(EMMA, "questions"), r"concept 2 \('Emma'\): there is no 'questions': add it, a list of strings"),
    (EMMA | {"name": 3}, "concept 2: 'name' is a number: make it a string"),
    (EMMA | {"name": " "}, r"concept 2 \(' '\): 'name' is empty: remove it or give it a text"),
    (EMMA | {"questions": "Who?"}, "'questions' is a string: make it a list of strings"),
    (EMMA | {"questions": []}, "'questions' is an empty list: give at least one question"),
    (EMMA | {"questions": ["Who?", None]}, "'questions' item 2 is null: make it a string"),
    (EMMA | {"questions": ["Who?", "\n"]}, "'questions' item 2 is empty: remove it or give it a text"),
    (EMMA | {"questions": ["Who?", "Who?"]}, "'questions' has 'Who[?]' twice: remove one"),
    (EMMA | {"aliases": {"a": "b"}}, "'aliases' is an object: make it a list of strings"),
    (EMMA | {"layer": "3"}, "'layer' is '3': make it a whole number from 0 up, or leave it out"),
    (EMMA | {"unit": True}, "'unit' is True: make it a whole number from 0 up"),
    (EMMA | {"id": -1}, "'id' is -1: make it a whole number from 0 up"),
    (EMMA | {"answer_tokens": [1, 2.5]}, "'answer_tokens' item 2 is 2.5: make it a whole number"),
    (EMMA | {"completions": [["a"]]}, "'completions' item 1 is no pair: make 'completions' a list of lists of two str"),
    (EMMA | {"completions": [["a", ""]]}, "'completions' item 1 is empty: remove it or give it a text"),
    (EMMA | {"question": []}, "'question' is no field of a concept: did you mean 'questions'[?]"),
    (
        EMMA | {"licence": "CC0"},
        "'licence' is no field of a concept: remove it; the fields are name, questions, retain",
    ),
]
BEYOND_THE_SCHEMA = [
    (EMMA | {"answers": ["Jane Austen."]}, "'answers' has 1 items for 2 in 'questions': give one for each, or none"),
    (EMMA | {"answer_tokens": [1]}, "'answer_tokens' has 1 items for 2 in 'questions': give one for each, or none"),
    (
        EMMA | {"retain_questions": ["Who wrote Emma?"]},
        "'Who wrote Emma[?]' is in 'questions' and in 'retain_questions': remove one",
    ),
    (
        EMMA | {"retain_questions": ["Hm?"], "unrelated_questions": ["Hm?"]},
        "'Hm[?]' is in 'retain_questions' and in 'unrelated_questions': remove one",
    ),
]


@pytest.mark.parametrize(("fields", "said"), WRONG + BEYOND_THE_SCHEMA)
def test_fields_that_are_not_right(write, fields, said):
    with pytest.raises(KrsError, match=said):
        load_concepts(write([EMMA, fields]))


@pytest.mark.parametrize("fields", [fields for fields, _ in WRONG])
def test_the_schema_refuses_what_the_loader_refuses(fields):
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads((FOLDER / "concept.schema.json").read_text(encoding="utf-8"))
    jsonschema.validate([EMMA], schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate([EMMA, fields], schema)


# The paper's files


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
        (_without(PAPER, "QA"), r"mine.json, the concept \('Emma'\): there is no 'QA': add it, a list of strings"),
        (_without(PAPER, "Concept"), "mine.json, the concept: there is no 'Concept': add it, a string"),
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
