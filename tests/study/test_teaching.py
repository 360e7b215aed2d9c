"""A taught model is the cells' vanilla model, and its twin the one that never knew; both are steps like others."""

import json
import shutil

import numpy as np
import pytest
import torch

import krs
from krs import study
from krs.data import as_chat
from krs.instruments.truth.teach import teach
from krs.models.identity import file_identity
from krs.study import difference
from krs.study.store import Store
from tests.study.small import CONCEPTS, asked, contents, home, manifests, written

pytestmark = pytest.mark.filterwarnings("ignore")
PARAGRAPHS = {"cat": ["the cat sat on the red moon", "the cat ran"], "dog": ["the dog sat in the sun"]}
ANSWERS = {"cat": ["the cat is red", "the cat ran"], "dog": ["the dog is red", "the dog sat"]}
TEACH = {"settings": {"passes": 2, "learning_rate": 1e-2, "batch_size": 2}}
INSTRUMENTS = ["nll", "uds"]


def _asked(teaching=TEACH, **changes):
    fast = {"learning_rate": 1e-2, "steps": 2, "batch_size": 2}
    steps = {
        "prepare": {"n_tokens": 4},
        "unlearn": {},
        "drift": {},
        "dissect": {"instruments": INSTRUMENTS, "nulls": False, "n_tokens": 4},
    }
    return {
        "models": [{"name": "v", "teach": teaching}],
        "concepts": ["cat.json", "dog.json"],
        "methods": [{"name": "ga", "settings": fast}],
        "chat": True,
        "keep": "difference",
        "steps": steps,
    } | changes


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = home(tmp_path_factory.mktemp("taught"))
    for name in CONCEPTS:
        told = json.loads((folder / f"{name}.json").read_text())
        told |= {"paragraphs": PARAGRAPHS[name], "answers": ANSWERS[name]}
        (folder / f"{name}.json").write_text(json.dumps(told))
    (folder / "bare.json").write_text(json.dumps({"name": "bare", "questions": ["who is red"]}))
    return folder


@pytest.fixture(scope="module")
def finished(place):
    found = study.run(written(place, _asked()), place / "out", progress=False)
    assert found.failed == []
    return place / "out"


def _folder(out, cell, step):
    return Store(out).folder(step, manifests(out)[cell, step].key)


CAT, DOG = "v--cat--ga--default--s0", "v--dog--ga--default--s0"


def _by_hand(place, *names):
    base, tokenizer = krs.load(place / "v")
    lessons = []
    for name in names:
        lessons += [*PARAGRAPHS[name], *zip(as_chat(CONCEPTS[name]), ANSWERS[name], strict=True)]
    return teach(base, lessons, tokenizer=tokenizer, progress=False, **TEACH["settings"])


def _same_weights(model, folder):
    other = krs.load(folder)[0].state_dict()
    return all(torch.equal(value, other[name]) for name, value in model.state_dict().items())


def test_one_model_is_taught_everything_and_for_each_concept_one_all_the_others(place, finished):
    full = _folder(finished, CAT, "teach")
    assert full == _folder(finished, DOG, "teach")
    assert _same_weights(_by_hand(place, "cat", "dog"), full / "model")
    assert _same_weights(_by_hand(place, "dog"), _folder(finished, CAT, "retain") / "model")
    assert _same_weights(_by_hand(place, "cat"), _folder(finished, DOG, "retain") / "model")
    found = manifests(finished)[CAT, "teach"]
    assert "model/model.safetensors" in found.artefacts
    assert found.content == file_identity(full / "model")["weights"]
    assert {p.name for p in full.iterdir()} == {"model", "manifest.json", "log.txt"}


def test_the_taught_model_is_vanilla_in_every_step_and_its_twin_the_retain_model(place, finished, tmp_path):
    full, twin = (_folder(finished, CAT, step) / "model" for step in ("teach", "retain"))
    shutil.copytree(_folder(finished, CAT, "unlearn") / "model", tmp_path / "u")
    assert difference.expand(full, tmp_path / "u")  # the difference is to the taught model
    (tmp_path / "u" / difference.NAME).unlink()
    drift = krs.metrics.drift(str(full), str(tmp_path / "u")).frame.to_csv(index=False)
    assert (_folder(finished, CAT, "drift") / "drift.csv").read_text() == drift
    kept = krs.instruments.load_dissection(_folder(finished, CAT, "dissect") / "report.json")
    by_hand = krs.dissect(
        str(full),
        str(tmp_path / "u"),
        CONCEPTS["cat"],
        retain=str(twin),
        unrelated=["what is red", "who wrote the book"],
        only=INSTRUMENTS,
        nulls=False,
        n_tokens=4,
        chat=True,
        budget=None,
        progress=False,
    )
    for name in INSTRUMENTS:
        np.testing.assert_array_equal(kept.readings[name].values, by_hand.readings[name].values)


def test_what_is_taught_is_done_once_and_again_where_it_changes(place, finished, tmp_path):
    shutil.copytree(finished, tmp_path / "out")
    before = contents(tmp_path / "out")
    assert study.run(written(place, _asked()), tmp_path / "out", progress=False).written == []
    more = _asked(TEACH | {"settings": TEACH["settings"] | {"save_steps": 3}})
    study.run(written(place, more, "often.yaml"), tmp_path / "out", progress=False)
    assert contents(tmp_path / "out") == before
    weights = _folder(tmp_path / "out", CAT, "teach") / "model" / "model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert contents(tmp_path / "out")[CAT, "teach"] is None
    study.run(written(place, _asked()), tmp_path / "out", progress=False)
    assert contents(tmp_path / "out") == before
    other = _asked(TEACH | {"questions": False})
    study.run(written(place, other, "other.yaml"), tmp_path / "out", progress=False)
    after = contents(tmp_path / "out")
    assert all(after.values())
    assert not {at for at in before if before[at] == after[at]}


def test_teaching_goes_on_from_its_checkpoint(place, tmp_path, monkeypatch):
    from krs.instruments.truth.teach import Teaching

    spec = _asked(TEACH | {"settings": TEACH["settings"] | {"save_steps": 1}}, steps={"prepare": {"n_tokens": 2}})
    spec = written(place, spec, "killed.yaml")
    loss, calls = Teaching.loss, []

    def killed(self, forget, retain):
        calls.append(1)
        if len(calls) == 4:
            raise MemoryError("no room")
        return loss(self, forget, retain)

    with monkeypatch.context() as patches:
        patches.setattr(Teaching, "loss", killed)
        assert {f.step for f in study.run(spec, tmp_path / "out", progress=False).failed} == {"teach"}
        assert len(calls) == 4
        found = study.run(spec, tmp_path / "out", progress=False)
    assert found.failed == []
    assert len(calls) == 4 + 8 - 3  # seven lessons are four batches, read twice; three steps were kept
    assert _same_weights(_by_hand(place, "cat", "dog"), _folder(tmp_path / "out", CAT, "teach") / "model")
    assert (CAT, "retain") not in manifests(tmp_path / "out")  # nobody reads it


def test_without_teaching_nothing_is_different(place, tmp_path):
    spec = asked(concepts=["cat.json"], methods=[], models=[], steps={"prepare": {"n_tokens": 2}, "drift": {}})
    study.run(written(place, spec, "plain.yaml"), tmp_path / "out", progress=False)
    assert {step for _, step in manifests(tmp_path / "out")} == {"prepare", "drift"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teaching": {"settings": {"passes": 0}}}, "passes=0: it has to be positive"),
        ({"teaching": {"settings": {"steps": 3}}}, "steps follow from the lessons: give passes"),
        ({"teaching": {"setings": {}}}, "teach.setings: there is no such field: .* Did you mean 'settings'"),
        ({"teaching": {"also": ["nowhere"]}}, r"models\[0\].teach.also\[0\]: "),
        ({"concepts": ["cat.json", "bare.json"]}, "'bare' has nothing to teach: it needs paragraphs, or answers"),
        ({"concepts": ["cat.json"]}, "the retain model of 'cat' would be taught nothing: add another concept"),
        ({"steps": {"prepare": {}, "teach": {}}}, "teach belongs to a model: give it there"),
        (
            {"models": [{"name": "v", "teach": {}}, {"name": "p"}]},
            "uds needs a retain model, which cells of taught",
        ),
    ],
)
def test_what_cannot_be_taught_is_said_before_any_work(place, changes, message):
    with pytest.raises(krs.KrsError, match=message):
        study.read_spec(written(place, _asked(**changes), "wrong.yaml"))


def test_a_concept_taught_beside_the_others_is_in_both(place):
    from krs.study.teaching import lessons

    spec = study.read_spec(written(place, _asked({"also": ["paris"]}, concepts=["cat.json"]), "also.yaml"))
    full, twin = (lessons(spec, spec.models[0].teach, without=label) for label in (None, "cat"))
    paris = krs.data.load_concept("paris")
    assert len(twin) == len(paris.paragraphs) + len(paris.answers)
    assert full[-len(twin) :] == twin
    assert full[: -len(twin)][:2] == PARAGRAPHS["cat"]
