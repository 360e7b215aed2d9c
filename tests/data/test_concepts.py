"""Files of concepts of one's own: what the loader takes and what it refuses, and the schema."""

import json
from pathlib import Path

import pytest

import krs
from krs import KrsError
from krs.data import Concept, load_concept, load_concepts
from tests.data.concept_case import EMMA, PAPER, without

FOLDER = Path(krs.__file__).parent / "data"


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


@pytest.mark.parametrize("name", ["harry_potter", "Harry Potter", "harry-potter", "HARRY POTTER", " Harry_Potter "])
def test_a_bundled_concept_by_the_ways_to_write_its_name(name):
    assert load_concept(name).name == "Harry Potter"


@pytest.mark.parametrize("name", ["harry-poter", "Hary Potter", "harrypotter"])
def test_a_name_that_is_nearly_one(name):
    with pytest.raises(KrsError, match=f"no concept '{name}' comes with krs.*did you mean 'harry_potter'"):
        load_concept(name)


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
    (without(EMMA, "name"), "mine.json, concept 2: there is no 'name': add it, a string"),
    (without(EMMA, "questions"), r"concept 2 \('Emma'\): there is no 'questions': add it, a list of strings"),
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
