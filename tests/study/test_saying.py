"""The steps that go on with texts and that read value vectors give what the calls give."""

import json

import pandas as pd
import pytest
from typer.testing import CliRunner

import krs
from krs import KrsError, study
from krs.cli import app
from tests.study.small import asked, contents, home, written

TEXTS = ["the cat sat on the red moon", "who wrote the book of the sun", "one two three"]


def test_both_steps_have_the_numbers_of_their_calls_and_follow_from_their_texts(tmp_path):
    place = home(tmp_path)
    told = json.loads((place / "cat.json").read_text()) | {"paragraphs": TEXTS, "layer": 2, "unit": 7}
    (place / "cat.json").write_text(json.dumps(told))
    steps = {"completions": {"texts": "paragraphs", "count": 2, "n_tokens": 4}, "vocabulary": {"where": "concept"}}
    only = {"models": [], "methods": [], "steps": steps | {"drift": {}}}
    file, out = written(place, asked(**only)), place / "out"
    assert CliRunner().invoke(app, ["study", str(file), "-o", str(out)]).exit_code == 0
    pair = str(place / "v"), str(place / "p")
    wanted = krs.metrics.text_completion(*pair, TEXTS[:2], n_tokens=4, progress=False)
    found = study.load(out)
    table = found.table("completions")
    assert list(table.nll_text) == list(wanted.frame.nll_text)
    assert list(table.text) == list(wanted.frame.text)
    wanted = krs.metrics.vocabulary(*pair, [(2, 7)]).to_frame()
    table = pd.read_csv(out / "results" / "vocabulary.csv", keep_default_na=False)
    assert list(table.token_id) == list(wanted.token_id)
    assert set(table.concept) == {"cat"}
    before = contents(out)
    (place / "cat.json").write_text(json.dumps(told | {"paragraphs": [*TEXTS[:2], "a dog ran"]}))
    study.run(file, out, progress=False)
    assert contents(out) == before  # only the first two are read
    (place / "cat.json").write_text(json.dumps(told | {"paragraphs": TEXTS[1:]}))
    study.run(file, out, progress=False)
    changed = {
        step for (_, step), content in contents(out).items() if content != before["v--cat--public--published", step]
    }
    assert changed == {"completions"}


@pytest.mark.parametrize(
    ("steps", "says"),
    [
        ({"completions": {}}, "steps.completions.texts: 'cat' has no completions: give a concept that has some"),
        (
            {"vocabulary": {"where": "concept"}},
            "steps.vocabulary.where: 'cat' has no layer and unit: give where: moved",
        ),
        ({"vocabulary": {"where": "moves"}}, "steps.vocabulary.where"),
    ],
)
def test_a_concept_that_lacks_what_a_step_reads_is_refused_before_any_work(tmp_path, steps, says):
    place = home(tmp_path)
    with pytest.raises(KrsError, match=says):
        study.read_spec(written(place, asked(steps=asked()["steps"] | steps)))
