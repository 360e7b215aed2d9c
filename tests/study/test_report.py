"""A study's page: every concept and method, numbers as saved, hostile answers as text, tables alone in memory."""

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import krs
from krs import KrsError, study
from krs.cli import app
from krs.pages import document
from krs.restore import storage
from krs.study.collected import Collected, Group, collect, made
from krs.study.curves import label_of
from krs.study.manifest import digest_of
from krs.study.page import page_from, page_of
from krs.study.pool import Pool
from krs.study.store import Store
from tests.pages.reading import Seen
from tests.pages.test_document import HOSTILE
from tests.study.small import asked, home, manifests, written

SETTINGS = ["mlp_coef", "mlp_coef+attn_out"]
METHODS = ["ga", "grad_diff", "public"]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A study of three cells with a step that hears restored answers."""
    place = home(tmp_path_factory.mktemp("report"))
    steps = asked()["steps"]
    steps["sweep"] = {"windows": 3, "n_tokens": 4, "settings": SETTINGS}
    steps |= {"restored": {"n_tokens": 4}}
    spec = study.read_spec(written(place, asked(steps=steps)))
    found = study.run(spec, place / "out", progress=False)
    assert found.failed == []
    return found


@pytest.fixture
def folders(done):
    """By method and step, the folder of its result."""
    store = Store(done.folder)
    told = manifests(done.folder)
    return {(name.split("--")[2], step): store.folder(step, manifest.key) for (name, step), manifest in told.items()}


@pytest.fixture
def page(done):
    return Seen(document(page_of(done)))


def test_every_curve_is_as_its_sweep_saved_it(page, folders):
    shown = page.tables["cat, v: means by window"]
    assert shown[0] == ["method", "strength", "layer", *map(label_of, SETTINGS)]
    for method in METHODS:
        saved = krs.load_result(folders[method, "sweep"] / "sweep.krs").krs
        rows = [row for row in shown if row[0] == method]
        assert [row[2] for row in rows] == [str(w) for w in saved.index]
        np.testing.assert_allclose([[float(v) for v in row[3:]] for row in rows], saved.to_numpy(), atol=5.1e-5)


def test_figures_and_averages_have_the_same_numbers(done, page):
    rows = done.table("krs")
    mean = rows.pivot_table(index="window", columns="setting", values="krs", sort=False)[SETTINGS]
    sd = rows.pivot_table(index="window", columns="setting", values="krs", sort=False, aggfunc="std")[SETTINGS]
    shown = pd.DataFrame(page.tables["v: mean over all 3 cells, standard deviation, and number of cells"])
    numbers = shown.iloc[1:, 1:].astype(float).to_numpy()
    np.testing.assert_allclose(numbers[:, [0, 2]], mean, atol=5.1e-5)
    np.testing.assert_allclose(numbers[:, [1, 3]], sd, atol=5.1e-5)
    assert set(numbers[:, 4]) == {3}
    drawn = [f for f in page.data["figures"] if f["kind"] == "lines" and "of" not in f]
    assert len(drawn) == len(METHODS)
    np.testing.assert_allclose(np.mean([f["v"] for f in drawn], axis=0).T, mean, rtol=5.1e-5)
    whole = next(f for f in page.data["figures"] if "of" in f)
    assert whole["of"] == [f["id"] for f in drawn]


def test_bleu_and_drift_are_those_of_the_studys_tables(done, page):
    from krs.study.figures import points

    want = points(done.table("answers")).set_index("method")
    rows = next(rows for caption, rows in page.tables.items() if "BLEU (0 to 100)" in caption)
    for method, _, target, unrelated in rows[1:]:
        assert float(target) == pytest.approx(want.target[method], abs=0.0051)
        assert float(unrelated) == pytest.approx(want.unrelated[method], abs=0.0051)
    drift = done.table("drift")
    maps = [f for f in page.data["figures"] if f["kind"] == "map"]
    assert len(maps) == len(METHODS)
    biggest = max(v for f in maps for row in f["v"] for v in row if v is not None)
    assert biggest == pytest.approx(drift.relative_change.max(), rel=1e-4)


def test_answers_stand_side_by_side_and_the_restored_ones_are_of_the_best_window(page, folders):
    (rows,) = [rows for caption, rows in page.tables.items() if caption.startswith("Answers before")]
    head = rows[0]
    assert head[-3:] == ["before (vanilla)", "after (unlearned)", "restored"]
    answers = pd.read_csv(folders["ga", "answers"] / "answers.csv", dtype=str, keep_default_na=False)
    mine = [row for row in rows if "ga" in row[:3]]
    assert [row[-2] for row in mine] == list(answers.unlearned)
    told = pd.read_csv(folders["ga", "restored"] / "restored.csv", keep_default_na=False)
    assert [row[-1] for row in mine[: len(told)]] == list(map(str, told.restored))
    best = krs.load_result(folders["ga", "sweep"] / "sweep.krs").best().loc["mlp_coef+attn_out"]
    assert set(zip(told.first_layer, told.last_layer, strict=True)) == {(best.first_layer, best.last_layer)}


def test_hostile_answers_stay_text(done, folders):
    file = folders["ga", "answers"] / "answers.csv"
    before = file.read_bytes()
    table = pd.read_csv(file)
    try:
        for word in HOSTILE:
            table["unlearned"] = word
            table.to_csv(file, index=False)
            seen = Seen(document(page_of(done)))
            assert len(seen.running) == 2
            assert all(value.startswith("#") for _, _, value in seen.loads)
            (rows,) = [rows for caption, rows in seen.tables.items() if caption.startswith("Answers before")]
            said = {row[-2] for row in rows if "ga" in row[:3]}
            assert said == {word.replace("\x00", "\ufffd")} or "\x00" in word
    finally:
        file.write_bytes(before)


def test_no_sweep_is_read_whole(done, monkeypatch):
    def refused(*_):
        raise AssertionError("a sweep's arrays were read")

    monkeypatch.setattr(storage, "_read", refused)
    page_of(done)


def test_the_command_writes_the_page_and_not_twice(done, tmp_path):
    place = tmp_path / "page.html"
    ran = CliRunner().invoke(app, ["report", str(done.folder), "-o", str(place)])
    assert ran.exit_code == 0, ran.exception
    assert ran.output.startswith(f"written: {place} (")
    text = place.read_text(encoding="utf-8")
    assert text == document(page_of(done))
    assert f"krs study study.yaml -o {done.folder.name}" in text
    with pytest.raises(KrsError, match="is there already"):
        krs.report(done.folder, place)


def test_a_study_without_results_is_refused(tmp_path):
    place = home(tmp_path)
    store = Store(place / "out")
    store.root.mkdir()
    store.begin(study.read_spec(written(place, asked())))
    with pytest.raises(KrsError, match="has no results yet: run it first"):
        krs.report(place / "out")


def test_a_step_restored_asks_for_a_setting_that_is_swept(tmp_path):
    place = home(tmp_path)
    steps = asked()["steps"] | {"restored": {"setting": "resid"}}
    with pytest.raises(KrsError, match=r"'resid' is not swept here: give one of mlp_coef, value_vectors"):
        study.read_spec(written(place, asked(steps=steps)))


def test_a_pool_is_the_mean_and_spread_of_what_it_was_given():
    values = np.random.default_rng(0).normal(size=(40, 3, 5))
    values[::3, 1] = np.nan
    one, two = Pool(), Pool()
    for i, row in enumerate(values):
        (one if i % 2 else two).add(row)
    one.join(two)
    np.testing.assert_allclose(one.mean, np.nanmean(values, axis=0), rtol=1e-12)
    np.testing.assert_allclose(one.sd, np.nanstd(values, axis=0, ddof=1), rtol=1e-12)


def test_ten_thousand_cells_are_less_than_five_megabytes(done):
    """20 concepts x 20 methods x 5 strengths x 5 seeds, 30 windows of four settings, and long answers."""
    random = np.random.default_rng(0)
    settings = ["mlp_coef", "value_vectors", "attn_out", "mlp_coef+attn_out"]
    found = Collected(plans={"v": (settings, list(range(30)))}, n_answers=200_000)
    for concept in range(20):
        for method in range(20):
            for strength in range(5):
                group = Group(cells=5)
                for _ in range(5):
                    group.curves.add(random.normal(size=(4, 30)))
                found.groups["v", f"concept {concept}", f"method {method}", str(strength)] = group
    found.states["done"] = 10_000
    row = {"model": "v", "concept": "concept 1", "method": "method 2", "strength": "1", "side": "target"}
    found.answers = [row | {"question": "q" * 60, "vanilla": "v" * 80, "unlearned": "u" * 80}] * 2_000
    text = document(page_from(done.spec, found, "many"))
    assert len(text.encode()) < 5_000_000
    assert "strengths are put together here" in text
    seen = Seen(text)
    assert sum("concept" in f.get("keys", {}) for f in seen.data["figures"]) == 400


def test_what_is_kept_of_answers_is_bounded(done):
    found = collect(done.spec, made(done.spec, Store(done.folder)))
    assert len(found.answers) == found.n_answers == 3 * 4
    assert all(isinstance(v, str) for row in found.answers for v in row.values())


def test_an_exported_study_makes_the_same_page_and_holds_no_question(done, tmp_path):
    whole = document(page_of(done))
    questions = ["who is the cat", "what ran on the moon", "what is red", "who wrote the book"]
    file = study.export(done, tmp_path / "results.json")
    kept = file.read_text()
    assert not any(question in kept for question in questions)
    assert str(done.folder.parent) not in kept
    bare = study.load_exported(file)
    assert repr(bare) == "study of 3 cells: 3 done (without the questions' texts)"
    joined = study.load_exported(file, [done.folder.parent / "cat.json"])
    pages = [Seen(text) for text in (whole, document(page_of(joined)), document(page_of(bare)))]
    assert pages[0].tables.keys() == pages[1].tables.keys() == pages[2].tables.keys()
    for name, rows in pages[0].tables.items():
        for mine, theirs in zip(rows, pages[1].tables[name], strict=True):
            for a, b in zip(mine, theirs, strict=True):
                assert a == b or abs(float(a) - float(b)) <= 2e-4 * max(1.0, abs(float(a))), name
    for name in ("krs", "answers"):
        mine, theirs = done.table(name), joined.table(name)
        assert list(mine.cell) == list(theirs.cell)
        number = "krs" if name == "krs" else "bleu"
        np.testing.assert_allclose(mine[number], theirs[number], rtol=1e-5)
    assert list(joined.table("answers").question.head(2)) == questions[:2]
    with pytest.warns(krs.KrsWarning, match=r"texts= has 2 of 4 questions of this study: the others stay numbers"):
        study.load_exported(file, [done.folder.parent / "dog.json"])
    assert list(bare.table("answers").question.head(2)) == [f"{i}:{digest_of(q)}" for i, q in enumerate(questions[:2])]


def test_an_exported_study_from_the_shell(done, tmp_path):
    run = lambda *args: CliRunner().invoke(app, [str(a) for a in args])  # noqa: E731
    file = tmp_path / "results.json"
    assert run("study", "export", done.folder, "-o", file).exit_code == 0
    shown = run("show", file)
    assert "A study of 3 cells: 3 done" in shown.stdout
    assert "- mlp_coef: " in shown.stdout
    pages = [tmp_path / name for name in ("bare.html", "joined.html")]
    assert run("report", file, "-o", pages[0]).exit_code == 0
    assert run("report", file, "-o", pages[1], "--texts", done.folder.parent / "cat.json").exit_code == 0
    assert ["who is the cat" in page.read_text() for page in pages] == [False, True]
    for args, told in (
        (("study", "export", done.folder), "takes a study's directory and a file"),
        (("study", "export", done.folder, "-o", file), "is there already"),
        (("study", "export", done.folder, "-o", tmp_path / "x.csv"), "give a name that ends in .json"),
        (
            ("report", done.folder, "-o", tmp_path / "x.html", "--texts", "paris"),
            "puts questions back into an exported",
        ),
    ):
        assert told in str(run(*args).exception)
    (tmp_path / "no.json").write_text('{"krs_study": 1}')
    with pytest.raises(KrsError, match="holds no exported study"):
        study.load_exported(tmp_path / "no.json")
