"""What a spec may name beside: texts of a concept, texts that are kept, a dtype, a published model for each concept."""

import json

import pytest

from krs import KrsError, study
from krs.data import load_concept
from krs.study.grid import cells, n_cells
from krs.study.training import concept_in
from tests.study.small import asked, contents, home, manifests, written

FAST = {"learning_rate": 1e-2, "steps": 2, "batch_size": 2}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = home(tmp_path_factory.mktemp("more"))
    (folder / "cats.jsonl").write_text('{"text": "the cat sat on the moon"}\n{"text": "a cat ran in the sun"}\n')
    (folder / "kept.jsonl").write_text('"one two three"\n"the sun is red"\n')
    return folder


def test_texts_come_from_files_and_what_follows_from_them_is_done_again(place):
    cat = {"name": "cat.json", "paragraphs": "cats.jsonl"}
    method = {"name": "grad_diff", "settings": FAST, "forget": "paragraphs", "retain": "kept.jsonl"}
    steps = {"prepare": {"n_tokens": 4}, "unlearn": {}}
    spec = asked(concepts=[cat], methods=[method], pairs=[], steps=steps, dtype="float64")
    file = written(place, spec)
    assert study.run(file, place / "out", progress=False).failed == []
    topic = study.read_spec(file).concepts[0]
    assert concept_in(topic).paragraphs == ("the cat sat on the moon", "a cat ran in the sun")
    (found,) = [m for (_, step), m in manifests(place / "out").items() if step == "unlearn"]
    report = json.loads((place / "out" / "steps" / "unlearn" / found.key / "model" / "krs_unlearn.json").read_text())
    assert report["vanilla"]["dtype"] == "float64"
    before = contents(place / "out")
    for name in ("cats.jsonl", "kept.jsonl"):
        (place / name).write_text((place / name).read_text() + '"what is blue and green"\n')
        study.run(file, place / "out", progress=False)
        after = contents(place / "out")
        changed = {step for (_, step), content in after.items() if content != before[_, step]}
        assert changed == {"unlearn"}
        before = after


def test_each_concept_may_have_a_published_model_of_its_own(place):
    pair = {"vanilla": "v", "unlearned": {"cat": "p", "dog": "v"}, "label": "public"}
    given = {"concepts": ["cat.json", "dog.json"], "models": [], "methods": [], "steps": {"drift": {}}}
    spec = study.read_spec(written(place, asked(**given, pairs=[pair])))
    assert n_cells(spec) == 2
    assert [cell.unlearned for cell in cells(spec)] == [str(place / "p"), str(place / "v")]
    only = study.read_spec(written(place, asked(**given, pairs=[pair | {"unlearned": {"dog": "p"}}])))
    assert [cell.name for cell in cells(only)] == ["v--dog--public--published"]
    assert n_cells(only) == 1


def test_an_exported_study_names_no_place_on_the_machine(place):
    cat = {"name": "cat.json", "paragraphs": "cats.jsonl"}
    method = {"name": "grad_diff", "settings": FAST, "retain": "kept.jsonl"}
    pair = {"vanilla": "v", "unlearned": {"cat": "p"}, "label": "public"}
    spec = asked(
        concepts=[cat], methods=[method], pairs=[pair], steps={"prepare": {"n_tokens": 4}, "unlearn": {}, "drift": {}}
    )
    found = study.run(written(place, spec), place / "exported", progress=False)
    file = study.export(found, place / "results.json", overwrite=True)
    assert str(place) not in file.read_text()
    again = study.load_exported(file).spec
    assert again.pairs[0].unlearned == {"cat": "p"}
    assert (again.concepts[0].paragraphs, again.methods[0].retain) == ("cats.jsonl", "kept.jsonl")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"concepts": [{"name": "cat.json", "paragraphs": "none.jsonl"}]}, "no such file: 'none.jsonl'"),
        ({"concepts": [{"name": "cat.json", "paragraphs": "pairs.jsonl"}]}, r"holds more than texts \(item 0\)"),
        ({"methods": [{"name": "ga", "retain": "kept.jsonl"}]}, r"methods\[0\].retain: ga keeps no texts of yours"),
        ({"methods": [{"name": "dpo_idk", "retain": "kept.jsonl"}]}, "dpo_idk keeps no texts of yours: leave it out"),
        ({"methods": [{"name": "grad_diff", "retain": "no.jsonl"}]}, r"methods\[0\].retain: no such file: 'no.jsonl'"),
        ({"pairs": [{"vanilla": "v", "unlearned": {"cow": "p"}}]}, r"unlearned.cow: 'cow' is no concept of this study"),
        ({"pairs": [{"vanilla": "v", "unlearned": {"cat": "./x"}}]}, r"pairs\[0\].unlearned.cat: no such path: './x'"),
        (
            {"pairs": [{"vanilla": "v", "unlearned": {"cat": "p"}, "concepts": ["cat"]}]},
            "unlearned has a model for each concept already: leave concepts out",
        ),
        ({"dtype": "bf16"}, "dtype: input should be 'auto', "),
    ],
)
def test_what_is_not_right_is_said_before_any_work(place, changes, says):
    (place / "pairs.jsonl").write_text('{"prompt": "who", "answer": "she"}\n')
    with pytest.raises(KrsError, match=says):
        study.read_spec(written(place, asked(**changes)))


def test_a_concept_of_a_file_goes_by_its_id_too(tmp_path):
    told = [{"Concept": "Emma", "QA": ["Who?"], "id": 7}, {"Concept": "1984", "QA": ["Who?"], "ID": 3}]
    (tmp_path / "c.json").write_text(json.dumps(told))
    found = [load_concept(tmp_path / "c.json", concept=name).name for name in ("7", "3", "1984", "emma")]
    assert found == ["Emma", "1984", "1984", "Emma"]
