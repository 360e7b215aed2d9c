"""What a study's tables say is what was written: whatever a model says, and whatever a method changes."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest

from krs import KrsError, study
from krs.study.collected import Made, collect
from krs.study.figures import TABLES
from krs.study.grid import cells
from krs.study.manifest import digest_of
from krs.study.step import step
from krs.study.stopping import until
from krs.study.store import Store
from krs.study.tables import read_file, read_table
from krs.study.tables import written as csv_text
from krs.unlearn.prepare import prepare
from krs.writing import write_text
from tests.study.small import asked, home, manifests, written
from tests.tiny import build
from tests.unlearn.tiny_tokenizer import tiny_tokenizer


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return home(tmp_path_factory.mktemp("tables"))


@pytest.mark.parametrize("said", ["None", "NA", "null", "nan", "", "007", "1e5"])
def test_an_answer_is_a_text_whatever_it_says(said):
    told = f'side,question,vanilla,unlearned,bleu,refusals\ntarget,q,{said},"{said}",1.5,True\nunrelated,q,a,b,,False\n'
    found = read_table(told)
    assert found.vanilla[0] == found.unlearned[0] == said
    assert found.bleu.isna().tolist() == [False, True]
    assert found.refusals.tolist() == [True, False]


@pytest.mark.parametrize("said", ["a\rb", "a\r\nb", 'a "quoted"\r, word', "a\nb"])
def test_an_answer_with_a_carriage_return_stays_in_its_row(said, tmp_path):
    table = pd.DataFrame({"side": ["target", "unrelated"], "vanilla": [said, "x"], "bleu": [1.5, np.nan]})
    write_text(tmp_path / "answers.csv", csv_text(table))
    pd.testing.assert_frame_equal(read_table(read_file(tmp_path / "answers.csv")), table)


def test_answers_in_which_a_line_ends_elsewhere_are_read_whole_where_training_stops_at_them(tmp_path):
    said = ["the cat\u2028ran", "the\x85sun", "the dog\x0cran"]
    rows = [{"prompt": "who is the cat", "answer": answer} for answer in said]
    file = tmp_path / "forget.jsonl"
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    found = until("nll > 2", build("llama"), tiny_tokenizer(), file, 8, chat=False)
    assert [fact.answer for fact in found["watch"].case.target.facts] == said


def test_a_question_of_two_lines_is_not_asked_as_two(place):
    told = {"name": "lines", "questions": ["who is\nthe cat"], "unrelated_questions": ["what is red"]}
    (place / "lines.json").write_text(json.dumps(told))
    with pytest.raises(KrsError, match=r"questions\[0\] of 'lines' has a line break, and would be asked as two"):
        study.read_spec(written(place, asked(concepts=["lines.json"]), "lines.yaml"))
    with pytest.raises(KrsError, match=r"questions\[0\] of 'lines' has a line break"):
        prepare(place / "lines.json", place / "v", place / "prepared")


def test_answers_of_a_study_and_of_its_export_are_texts(place, tmp_path):
    steps = {"prepare": {"n_tokens": 4}, "answers": {"n_tokens": 4}}
    spec = written(place, asked(models=[], methods=[], steps=steps), "said.yaml")
    found = study.run(spec, tmp_path, progress=False)
    (manifest,) = (m for (_, name), m in manifests(tmp_path).items() if name == "answers")
    file = Store(tmp_path).folder("answers", manifest.key) / TABLES["answers"][1]
    table = read_table(file.read_text())
    table.unlearned = "NA"  # as a model may say
    file.write_text(table.to_csv(index=False))
    exported = study.load_exported(study.export(found, tmp_path / "all.json"))
    for one in (found, exported):
        assert set(one.table("answers").unlearned) == {"NA"}


def test_methods_may_have_changed_other_components():
    """One brings biases where there were none."""
    spec = study.read_spec({"models": ["smollm2"], "concepts": ["paris"], "methods": ["ga", "npo"]})
    header = "component,layer,relative_change"
    files = [f"{header}\nkeys,0,0.5\n", f"{header}\nkeys,0,0.25\nbiases,0,0.125\n"]
    made = [
        Made(cell, "done", "", {"drift": lambda _, text=text: text}, ())
        for cell, text in zip(cells(spec), files, strict=True)
    ]
    found = collect(spec, made)
    assert found.places["smollm2", "npo"] == (["keys", "biases"], [0])
    assert found.drift["smollm2", "npo"].mean.tolist() == [[0.25], [0.125]]
    assert found.drift["smollm2", "ga"].mean.tolist() == [[0.5]]


def test_two_vanilla_models_of_one_name_are_not_taken_for_one(place):
    shutil.copytree(place / "p", place / "other" / "v")
    pairs = [{"vanilla": name, "unlearned": "p", "label": name[-3:]} for name in ("v", "other/v")]
    with pytest.raises(KrsError, match=r"pairs\[1\].vanilla: another model of this study goes by 'v' too"):
        study.read_spec(written(place, asked(models=[], methods=[], pairs=pairs), "twice.yaml"))


def test_a_dissection_follows_from_the_versions_of_its_instruments(place, monkeypatch):
    spec = study.read_spec(written(place, asked(steps={"prepare": {}, "unlearn": {}, "dissect": {}}), "look.yaml"))
    made, cell = step("dissect"), next(cells(spec))
    options = made.options(instruments=["nll"])
    before = made.inputs(cell, spec, options)
    monkeypatch.setattr("krs.instruments.behaviour.NLL.version", 7)
    assert digest_of(made.inputs(cell, spec, options)) != digest_of(before)
    assert digest_of(made.inputs(cell, spec, made.options(instruments=["recall"]))) != digest_of(before)
