"""A whole small study: done once, gone on with, and redone where something changed."""

import json

import pandas as pd
import pytest
import torch

import krs
from krs import study
from krs.study import difference
from krs.study.grid import cells
from krs.study.run import listed, show, status
from krs.study.stopping import STOP
from krs.study.store import Store
from tests.study.small import CONCEPTS, asked, contents, home, manifests, written

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return home(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def finished(place):
    """The whole study, run once; tests that change something copy it."""
    found = study.run(written(place, asked()), place / "out", progress=False)
    assert found.failed == []
    return place / "out"


@pytest.fixture
def copied(finished, tmp_path):
    import shutil

    shutil.copytree(finished, tmp_path / "out")
    return tmp_path / "out"


def _made(out):
    """When each result was made: what was redone has another time stamp."""
    return {
        at: found and found.key + str((Store(out).folder(at[1], found.key) / "manifest.json").stat().st_mtime_ns)
        for at, found in manifests(out).items()
    }


def _redone(before, out):
    return {at for at, made in _made(out).items() if made != before.get(at)}


def test_every_cell_is_done_and_the_figures_are_drawn(finished):
    found = manifests(finished)
    assert {cell for cell, _ in found} == {
        "v--cat--ga--default--s0",
        "v--cat--grad_diff--default--s0",
        "v--cat--public--published",
    }
    assert all(found.values())
    assert ("v--cat--public--published", "unlearn") not in found
    names = {p.name for p in (finished / "results").iterdir()} - {"made_from.json"}
    assert names == {"krs.csv", "answers.csv", "drift.csv", "fig1-v.png", "fig2-v.png"}
    table = pd.read_csv(finished / "results" / "krs.csv")
    assert set(table.method) == {"ga", "grad_diff", "public"}
    assert len(table) == 3 * 4 * 4  # cells x settings x windows


def test_a_cell_has_the_numbers_of_the_library_called_by_hand(finished, place):
    at = manifests(finished)["v--cat--public--published", "sweep"]
    kept = krs.load_result(Store(finished).folder("sweep", at.key) / "sweep.krs")
    questions = krs.data.as_chat(krs.data.load_concept(place / "cat.json").questions)
    by_hand = krs.sweep(str(place / "v"), str(place / "p"), questions, windows=3, n_tokens=4, progress=False)
    pd.testing.assert_frame_equal(kept.krs, by_hand.krs)


def test_run_again_it_does_nothing(place, copied):
    before = _made(copied)
    again = study.run(place / "study.yaml", copied, progress=False)
    assert (again.failed, again.written) == ([], [])
    assert _redone(before, copied) == set()


def test_what_a_killed_process_was_writing_is_cleared_away(place, copied):
    torn = [copied / ".krs-1.tmp.json", copied / "results" / ".krs-2.tmp.png"]
    for file in torn:
        file.write_text("half of it")
    (copied / "results" / "made_from.json").unlink()  # as it is while results are written
    study.run(place / "study.yaml", copied, progress=False)
    assert not list(copied.rglob(".krs-*"))


def test_a_changed_option_redoes_that_step_alone(place, copied):
    before = _made(copied)
    changed = asked()
    changed["steps"]["answers"]["n_tokens"] = 3
    study.run(written(place, changed, "other.yaml"), copied, progress=False)
    assert {step for _, step in _redone(before, copied)} == {"answers"}


def test_status_says_of_which_spec_a_step_is_that_the_last_one_asks_for_otherwise(place, copied):
    assert not any("another spec" in line for line in status(copied))
    changed = asked()
    changed["steps"]["answers"]["n_tokens"] = 3
    changed["methods"][0]["settings"]["learning_rate"] = 1e-3
    Store(copied).begin(study.read_spec(written(place, changed, "other.yaml")))  # as a run that was stopped at once
    said = list(status(copied))
    at = next(i for i, line in enumerate(said) if "public" in line)
    assert said[at].startswith("begun")
    assert said[at + 1] == "        answers is there, of another spec: n_tokens (4 there, 3 here)"
    at = next(i for i, line in enumerate(said) if "--ga--" in line)
    assert said[at + 1].startswith("        unlearn is there, of another spec: settings")
    assert not said[at + 2].startswith("  ")  # what follows from it is no matter of its own
    assert said[-1] == f"'here' is {copied / 'study.json'}, the spec as it was last run"


def test_a_changed_method_redoes_its_cell_alone(place, copied):
    before = _made(copied)
    changed = asked()
    changed["methods"][0] = {"name": "ga", "settings": {"learning_rate": 1e-2, "steps": 3, "batch_size": 2}}
    study.run(written(place, changed, "other.yaml"), copied, progress=False)
    assert _redone(before, copied) == {
        ("v--cat--ga--default--s0", step) for step in ("unlearn", "sweep", "answers", "drift")
    }


def test_changed_questions_redo_what_reads_them(tmp_path):
    place = home(tmp_path)
    spec = written(place, asked(pairs=[], methods=[asked()["methods"][0]]))
    study.run(spec, place / "out", progress=False)
    before = _made(place / "out")
    told = json.loads((place / "cat.json").read_text())
    (place / "cat.json").write_text(json.dumps(told | {"questions": ["who is the cat", "what ran in the sun"]}))
    study.run(spec, place / "out", progress=False)
    assert {step for _, step in _redone(before, place / "out")} == {"prepare", "unlearn", "sweep", "answers", "drift"}


def test_training_stops_where_the_answers_read_as_asked_and_only_some_questions_are_studied(tmp_path):
    place = home(tmp_path)
    fast = {"learning_rate": 1e-2, "steps": 30, "batch_size": 2}
    start = _nll(place, place / "v", [1])
    method = {
        "name": "ga",
        "settings": fast,
        "strengths": {"half": {STOP: f"nll > {start + 0.5}"}, "all": {"steps": 2}},
    }
    steps = {"prepare": {"n_tokens": 4}, "unlearn": {}, "answers": {"n_tokens": 4, "unrelated": 1}}
    spec = asked(pairs=[], methods=[method], concepts=[{"name": "cat.json", "only": [1]}], steps=steps)
    found = study.run(written(place, spec), place / "out", progress=False)
    assert found.failed == []
    cell = next(cells(found.spec))
    folder = {
        name: Store(place / "out").folder(name, kept.key)
        for (at, name), kept in manifests(place / "out").items()
        if at == cell.name
    }
    report = json.loads((folder["unlearn"] / "model" / "krs_unlearn.json").read_text())
    reached = [row["nll"] for row in report["watched"]]
    assert report["stopped"].startswith("nll ")
    assert len(reached) == report["steps"] + 1 < 30
    assert reached[0] == pytest.approx(start, abs=1e-6)
    assert all(value <= start + 0.5 for value in reached[:-1])
    assert reached[-1] > start + 0.5
    assert _nll(place, folder["unlearn"] / "model", [1]) == pytest.approx(reached[-1], abs=1e-5)
    told = pd.read_csv(folder["answers"] / "answers.csv")
    assert list(told[told.side == "target"].question) == ["what ran on the moon"]
    assert (told.side == "unrelated").sum() == 1


def _nll(place, model, only):
    """Of the vanilla model's own answers, from logits, without instruments."""
    vanilla, tokenizer = krs.load(place / "v")
    asked = krs.data.as_chat([CONCEPTS["cat"][n] for n in only])
    said = krs.generate(vanilla, None, asked, tokenizer=tokenizer, n_tokens=4, progress=False)
    other, _ = krs.load(model)
    found = []
    for question, text in zip(asked, said, strict=True):
        prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_dict=False)
        answer = tokenizer(text, add_special_tokens=False)["input_ids"]
        answer = [*answer, tokenizer.eos_token_id][:4]
        logits = other(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1].double()
        found.append(-logits.log_softmax(-1)[range(len(answer)), answer].mean().item())
    return sum(found) / len(found)


@pytest.mark.parametrize(
    ("step", "how"),
    [
        ("unlearn", "flipped"),
        ("unlearn", "its manifest cut short"),
        ("sweep", "flipped"),
        ("sweep", "cut short"),
        ("sweep", "missing"),
    ],
)
def test_a_damaged_artefact_is_found_and_made_again(place, copied, step, how):
    before, results = _made(copied), contents(copied)
    at = ("v--cat--ga--default--s0", step)
    folder = Store(copied).folder(step, results[at][0])
    file = folder / ("model/model.safetensors" if step == "unlearn" else "sweep.krs")
    file = folder / "manifest.json" if "manifest" in how else file
    data = file.read_bytes()
    if how == "missing":
        file.unlink()
    else:
        flipped = data[:-1] + bytes([data[-1] ^ 1])
        file.write_bytes(flipped if how == "flipped" else data[: len(data) // 2])
    assert contents(copied)[at] is None
    study.run(place / "study.yaml", copied, progress=False)
    assert contents(copied) == results
    assert _redone(before, copied) == {at}


@pytest.mark.parametrize("keep", ["difference", "nothing"])
def test_weights_that_are_not_kept_come_back_bit_for_bit(place, copied, keep):
    at = ("v--cat--ga--default--s0", "unlearn")
    results = contents(copied)
    model = Store(copied).folder("unlearn", results[at][0]) / "model"
    whole = (model / "model.safetensors").read_bytes()
    study.run(written(place, asked(keep=keep), "other.yaml"), copied, progress=False)
    assert contents(copied) == results
    assert not (model / "model.safetensors").exists()
    assert (model / difference.NAME).exists() == (keep == "difference")
    if keep == "difference":
        assert difference.expand(place / "v", model)
        assert (model / "model.safetensors").read_bytes() == whole
        (model / "model.safetensors").unlink()
    changed = asked(keep=keep)
    changed["steps"]["sweep"]["windows"] = 5
    found = study.run(written(place, changed, "other.yaml"), copied, progress=False)
    assert found.failed == []
    assert contents(copied)[at] == results[at]
    assert not (model / "model.safetensors").exists()
    kept = study.run(written(place, changed | {"keep": "weights"}, "other.yaml"), copied, progress=False)
    assert kept.failed == []


def test_a_failing_cell_is_noted_and_the_others_go_on(place, tmp_path):
    broken = {"name": "ga", "label": "broken", "settings": {"learning_rate": 1e30, "steps": 2, "max_grad_norm": 1e30}}
    spec = asked(methods=[broken, asked()["methods"][1]])
    found = study.run(written(place, spec, "broken.yaml"), tmp_path / "out", progress=False)
    assert [outcome.cell for outcome in found.failed] == ["v--cat--broken--default--s0"]
    assert found.failed[0].step == "unlearn"
    done = contents(tmp_path / "out")
    assert all(done[cell, step] for cell, step in done if "broken" not in cell)
    said = show(tmp_path / "out", "v--cat--broken")
    assert "failed in unlearn at" in said
    assert "Traceback" in said
    assert any(line.startswith("failed  v--cat--broken") for line in status(tmp_path / "out"))


def test_a_dry_run_lists_cells_memory_and_time(place, copied):
    changed = asked()
    changed["steps"]["drift"] = {}
    changed["methods"].append({"name": "npo"})
    spec = study.read_spec(written(place, changed, "other.yaml"))
    lines = list(listed(spec, Store(copied)))
    assert lines[0] == "done    v--cat--ga--default--s0  prepare unlearn sweep answers drift"
    assert any(line == "begun   v--cat--npo--default--s0  prepare unlearn? sweep? answers? drift?" for line in lines)
    assert "4 cells: 1 begun, 3 done\nmemory: about" in lines[-1]
    assert lines[-1].endswith("time left: unknown (4 steps of a kind that has not been measured yet)")


def test_the_time_left_is_that_of_finished_cells_of_the_same_kind(place, copied):
    spec = study.read_spec(written(place, asked(seeds=[0, 1]), "other.yaml"))
    last = list(listed(spec, Store(copied)))[-1]
    assert "time left: about " in last
    assert "unknown" not in last


def test_a_directory_of_something_else_is_left_alone(place, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(krs.KrsError, match="is not empty, and holds no study: give another directory"):
        study.run(place / "study.yaml", tmp_path, progress=False)


@pytest.fixture
def dissected(copied, place):
    """The finished study with the step `dissect` put behind it."""
    changed = asked()
    changed["steps"]["dissect"] = {"instruments": ["nll", "recall", "relearn"], "n_tokens": 6, "questions": 2}
    found = study.run(written(place, changed, "dissect.yaml"), copied, progress=False)
    assert found.failed == []
    return found


def test_a_cell_is_dissected_with_its_concept_and_nothing_else_is_done_again(dissected, copied, place):
    at = {cell: found for (cell, step), found in manifests(copied).items() if step == "dissect"}
    assert len(at) == 3
    kept = Store(copied).folder("dissect", at["v--cat--public--published"].key)
    assert {"report.html", "report.json", "evidence.csv", "readings"} <= {p.name for p in kept.iterdir()}
    found = krs.instruments.load_dissection(kept / "report.json")
    questions = krs.data.load_concept(place / "cat.json").questions[:2]
    by_hand = krs.dissect(
        str(place / "v"), str(place / "p"), questions, only=["nll", "relearn"], n_tokens=6, chat=True, progress=False
    )
    assert [f.question for f in found.facts] == list(questions)
    assert found.readings["nll"].mean == by_hand.readings["nll"].mean
    table = dissected.table("dissect")
    assert len(table) == 3 * 3
    assert set(table.verdict) <= {"cannot tell", "knows", "partly", "does not know"}
    row = table[(table.method == "public") & (table.instrument == "nll")].iloc[0]
    assert row["mean"] == pytest.approx(found.readings["nll"].mean)


def test_what_a_dissection_in_a_study_cannot_have_is_said_before_any_work(place):
    for options, message in [
        ({"instruments": ["nll", "ndl"]}, "Did you mean 'nll'"),
        ({"instruments": ["uds"]}, "uds needs a retain model, which cells of taught models have"),
        ({"budget": "10m"}, "budget"),
    ]:
        changed = asked()
        changed["steps"]["dissect"] = options
        with pytest.raises(krs.KrsError, match=message):
            study.read_spec(written(place, changed, "wrong.yaml"))
    changed = asked(chat_template_kwargs={"today": "x"})
    changed["steps"]["dissect"] = {}
    with pytest.raises(krs.KrsError, match="instruments take no arguments of the chat template"):
        study.read_spec(written(place, changed, "wrong.yaml"))
