"""`krs.report`: sweeps, means, dissections and what else is saved, with the numbers that were saved."""

import json

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import krs
from krs import KrsError
from krs.cli import app
from krs.instruments.dissection import Dissection
from krs.instruments.reading import Reading
from krs.instruments.verdict import Verdict
from tests.instruments.case import FACTS
from tests.pages.reading import Seen
from tests.tiny import pair
from tests.unlearn.tiny_tokenizer import tiny_tokenizer

SETTINGS = ["mlp_coef", "mlp_coef+attn_out"]


@pytest.fixture(scope="module")
def sweeps():
    vanilla, unlearned = pair("llama")
    ask = {"settings": SETTINGS, "windows": 1, "n_tokens": 3, "progress": False, "measures": ["kl"]}
    return [krs.sweep(vanilla, unlearned, prompts, **ask) for prompts in ([[5, 9, 11], [7, 3, 22, 8]], [[4, 4], [9]])]


def _seen(what, tmp_path, name="page.html"):
    return Seen(krs.report(what, tmp_path / name, overwrite=True).read_text(encoding="utf-8"))


def test_a_sweeps_page_has_the_numbers_of_its_file(sweeps, tmp_path):
    sweeps[0].save(tmp_path / "a.krs")
    page = _seen(tmp_path / "a.krs", tmp_path)
    shown = page.tables["Knowledge Recovery Score by window"]
    assert shown[0][1:] == [s.label for s in sweeps[0].plan.settings]
    numbers = np.array([[float(v) for v in row[1:]] for row in shown[1:]])
    np.testing.assert_allclose(numbers, sweeps[0].krs, atol=5.1e-5)
    lines = [f for f in page.data["figures"] if f["kind"] == "lines"]
    assert len(lines) == 2  # the score, and the recovery of kl
    np.testing.assert_allclose(np.array(lines[0]["v"]).T, sweeps[0].krs, rtol=5.1e-5)
    low, _ = sweeps[0].interval(0.95)
    np.testing.assert_allclose(np.array(lines[0]["low"]).T, low, rtol=5.1e-5)
    np.testing.assert_allclose(np.array(lines[1]["v"]).T, sweeps[0].recovery("kl"), rtol=5.1e-5)
    words = [f for f in page.data["figures"] if f["kind"] == "map"]
    best = sweeps[0].best().krs.idxmax()
    np.testing.assert_allclose(words[1]["v"], sweeps[0].tokens(1, best, recovery=True), rtol=5.1e-5)
    prompts = page.tables["Prompts, and the highest score of each setting on each"]
    assert [row[0] for row in prompts[1:]] == ["5 9 11", "7 3 22 8"]


def test_a_page_is_the_same_twice_and_the_command_names_it_after_the_file(sweeps, tmp_path):
    sweeps[0].save(tmp_path / "a.krs")
    ran = CliRunner().invoke(app, ["report", str(tmp_path / "a.krs")])
    assert ran.exit_code == 0, ran.exception
    first = (tmp_path / "a.html").read_bytes()
    assert CliRunner().invoke(app, ["report", str(tmp_path / "a.krs")]).exit_code != 0
    assert CliRunner().invoke(app, ["report", str(tmp_path / "a.krs"), "--overwrite"]).exit_code == 0
    assert (tmp_path / "a.html").read_bytes() == first


def test_means_and_sweeps_by_name_and_a_directory_have_pages(sweeps, tmp_path):
    mean = krs.mean(sweeps, ["one", "two"])
    page = _seen(mean, tmp_path)
    (line, *_) = [f for f in page.data["figures"] if f["kind"] == "lines"]
    np.testing.assert_allclose(np.array(line["high"]).T, mean.krs + mean.sd(), rtol=5.1e-5)
    page = _seen({"one": sweeps[0], "two": sweeps[1]}, tmp_path)
    assert next(s["values"] for s in page.data["switches"]) == ["one", "two"]
    for name, sweep in zip(("a.krs", "b.krs"), sweeps, strict=True):
        sweep.save(tmp_path / name)
    page = _seen(tmp_path, tmp_path, "all.html")
    assert {text[0].split(":")[0] for level, text in page.headings if level == 2} == {"a.krs", "b.krs"}


def test_a_map_has_every_cell(tmp_path):
    vanilla, unlearned = pair("llama")
    ask = {"settings": "resid", "windows": 1, "positions": "each", "n_tokens": 2, "progress": False}
    result = krs.sweep(vanilla, unlearned, [[5, 9, 11]], **ask)
    (one,) = [f for f in _seen(result, tmp_path).data["figures"] if f["kind"] == "map"]
    np.testing.assert_allclose(one["v"], result.krs, rtol=5.1e-5)
    assert one["x"] == [str(p) for p in result.plan.places]


def test_a_dissections_folder_has_a_page_that_answers(tmp_path):
    curve = pd.DataFrame({"vanilla": [1.0, 0.5], "unlearned": [2.0, 1.5]}, index=pd.Index([0, 1], name="layer"))
    reading = Reading("nll", np.array([0.25, 0.75]), "nats", "low", {"same": np.array([0.1, 0.2])}, {"by layer": curve})
    evil = "</script><script>alert(1)</script>"
    told = Dissection(Verdict("knows", evil), {"nll": reading}, {"uds": evil}, FACTS, {"vanilla": [evil] * len(FACTS)})
    told.save(tmp_path / "report.json")
    page = _seen(tmp_path, tmp_path)
    assert len(page.running) == 2
    assert float(page.tables["What each instrument reads, with a 95 % interval over facts"][1][2]) == 0.5
    (line,) = page.data["figures"]
    assert line["v"] == [[1.0, 0.5], [2.0, 1.5]]
    assert {row[-1] for row in page.tables["What each model says to each question"][1:]} == {evil}


def test_value_vectors_have_a_page(tmp_path):
    found = krs.metrics.vocabulary(*pair("llama"), tokenizer=tiny_tokenizer(), count=2, top=3)
    found.save(tmp_path / "vocabulary.json")
    page = _seen(tmp_path / "vocabulary.json", tmp_path)
    assert len(page.tables["Each token"]) == 1 + 2 * 2 * 3
    shown = page.tables["By value vector"]
    assert [row[:2] for row in shown[1:]] == [
        [str(n) for n in at] for at in found.vectors[["layer", "unit"]].to_numpy()
    ]
    assert float(shown[1][shown[0].index("tv")]) == round(float(found.vectors.tv[0]), 3)


def test_what_is_no_result_and_no_place_for_a_page_is_refused(sweeps, tmp_path):
    with pytest.raises(KrsError, match="a report of a result that is no file needs a name"):
        krs.report(sweeps[0])
    with pytest.raises(KrsError, match=r"a report is a page, give a name that ends in \.html"):
        krs.report(sweeps[0], tmp_path / "a.pdf")
    with pytest.raises(KrsError, match="there is nothing in '.*nowhere'"):
        krs.report(tmp_path / "nowhere")
    with pytest.raises(KrsError, match="there is no report of a dict"):
        krs.report({"a": json}, tmp_path / "a.html")
    with pytest.raises(KrsError, match="a directory without a result in it"):
        krs.report(tmp_path)
    assert list(tmp_path.iterdir()) == []
