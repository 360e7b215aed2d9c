"""Answers that were given are not lost, stand in for those of the same model only, and come back whole or not."""

import importlib
import json
import math

import pytest

from krs import KrsError
from krs.metrics import answers, answers_file, load_answers
from tests.noise import assert_same_table, float64_throughout
from tests.test_writing import full_disk
from tests.tiny import build, exact_pair
from tests.unlearn.tiny_tokenizer import tiny_tokenizer

GREEDY = importlib.import_module("krs.generation.greedy")
TARGET, UNRELATED = ["who wrote the book", "what is red"], ["the cat sat on"]


def _ask(v, u, **options):
    given = {"target": TARGET, "unrelated": UNRELATED, "tokenizer": tiny_tokenizer(), "n_tokens": 4, "progress": False}
    with float64_throughout():
        return answers(v, u, **(given | options))


@pytest.fixture(scope="module")
def models():
    return exact_pair("llama")


@pytest.fixture(scope="module")
def found(models):
    return _ask(*models)


def _stops(model):
    """Ctrl-C at the model's first forward."""

    def interrupt(*_):
        raise KeyboardInterrupt

    return model.register_forward_pre_hook(interrupt)


def test_an_interrupted_call_keeps_the_vanilla_answers_and_goes_on_from_them(models, found, tmp_path):
    v, u = models
    file, handle = tmp_path / "part.json", _stops(u)
    with pytest.raises(KeyboardInterrupt) as stop:
        _ask(v, u, checkpoint=file)
    handle.remove()
    said = "the answers so far (3 of 3 vanilla and 0 of 3 unlearned) are"
    assert stop.value.__notes__ == [f"{said} in {str(file)!r}; the same call goes on from there"]
    partial = stop.value.partial
    assert not partial.complete
    assert list(partial.frame.vanilla) == list(found.frame.vanilla)
    assert partial.frame.unlearned.isna().all()
    assert math.isnan(partial.table.bleu["target"])
    assert load_answers(file).token_ids == partial.token_ids
    ran = []
    handle = v.register_forward_pre_hook(lambda *_: ran.append(1))
    _ask(v, u)
    anew = len(ran)
    ran.clear()
    resumed = _ask(v, u, checkpoint=file)
    reused = _ask(v, u, reuse=partial)
    handle.remove()
    answering = max(map(len, found.token_ids["vanilla"]))
    assert len(ran) <= 2 * (anew - answering)  # once each for the likelihood, beside looking whether neighbours matter
    assert_same_table(resumed.frame, found.frame)
    assert_same_table(reused.frame, found.frame)
    assert resumed.complete
    assert load_answers(file).frame.equals(resumed.frame)
    assert reused.provenance["vanilla_answers"]["reused"]


def test_without_a_checkpoint_the_exception_has_them(models, found):
    handle = _stops(models[1])
    with pytest.raises(KeyboardInterrupt) as stop:
        _ask(*models)
    handle.remove()
    assert stop.value.__notes__ == [
        "the answers so far (3 of 3 vanilla and 0 of 3 unlearned) are in the exception's attribute `partial`; reuse= "
        "takes the vanilla ones"
    ]
    assert stop.value.partial.token_ids["vanilla"] == found.token_ids["vanilla"]


MANY = ["who wrote the book", "what is red", "the cat", "one two three four", "the moon ran", "who is the cat on"]


def _stops_at(model, forward, stop):
    """The model stops at a certain forward, counted from 0; returns the forwards that there were, and the handle."""
    ran = []

    def interrupt(*_):
        ran.append(1)
        if len(ran) > forward:
            raise stop

    return ran, model.register_forward_pre_hook(interrupt)


@pytest.mark.parametrize("side", ["vanilla", "unlearned"])
@pytest.mark.parametrize("stop", [KeyboardInterrupt(), RuntimeError("no memory left")])
def test_an_interruption_inside_a_side_keeps_its_whole_batches(models, tmp_path, monkeypatch, side, stop):
    monkeypatch.setattr(GREEDY, "_BATCH", 2)
    v, u = models
    model, file, asked = {"vanilla": v, "unlearned": u}[side], tmp_path / "part.json", {"target": MANY, "n_tokens": 6}
    ran, handle = _stops_at(model, 10**6, stop)
    begun, real = [], GREEDY._lockstep
    with monkeypatch.context() as noting:
        noting.setattr(GREEDY, "_lockstep", lambda one, *a: (one is model and begun.append(len(ran))) or real(one, *a))
        whole = _ask(v, u, **asked)
    handle.remove()
    forwards = len(ran)
    _, handle = _stops_at(model, begun[2] + 1, stop)  # in the third of four batches
    with pytest.raises(type(stop)) as stopped:
        _ask(v, u, checkpoint=file, **asked)
    handle.remove()
    partial = stopped.value.partial
    assert not partial.complete
    assert partial.token_ids[side] == whole.token_ids[side][:4]
    assert partial.frame[side][4:].isna().all()
    assert "4 of 7 " + side in stopped.value.__notes__[-1]
    assert load_answers(file).token_ids == partial.token_ids
    assert load_answers(file).frame.equals(partial.frame)
    repr(partial)
    ran, handle = _stops_at(model, 10**6, stop)
    resumed = _ask(v, u, checkpoint=file, **asked)
    handle.remove()
    assert len(ran) == forwards - (begun[2] - begun[0])
    assert resumed.complete
    assert_same_table(resumed.frame, whole.frame)
    assert resumed.token_ids == whole.token_ids
    own = {k: v for k, v in resumed.provenance.items() if k != "made"}
    assert own == {k: v for k, v in whole.provenance.items() if k != "made"}
    assert_same_table(_ask(v, u, reuse=partial, **asked).frame, whole.frame)
    with pytest.raises(KrsError, match=r"What differs: the vanilla model \(weights\)"):
        _ask(_changed(v), u, reuse=partial, **asked)


def test_answers_are_kept_while_they_are_given(models, tmp_path, monkeypatch):
    monkeypatch.setattr(GREEDY, "_BATCH", 1)
    monkeypatch.setattr("krs.metrics.answers_file._SAVE_EVERY", -1.0)
    saved, real = [], answers_file.save
    monkeypatch.setattr(answers_file, "save", lambda found, path: saved.append(found.token_ids) or real(found, path))
    found = _ask(*models, checkpoint=tmp_path / "part.json")
    assert [tuple(map(len, ids.values())) for ids in saved] == [(1,), (2,), (3,), (3, 1), (3, 2), (3, 3), (3, 3)]
    assert load_answers(tmp_path / "part.json").token_ids == found.token_ids


def _changed(model):
    other = build("llama").double()
    other.load_state_dict(model.state_dict())
    other.model.layers[2].mlp.down_proj.weight.data[:, 17] += 1e-4
    return other


def test_a_checkpoint_of_other_answers_is_refused_before_a_weight_is_loaded(models, tmp_path):
    for name, model in zip("vuw", (*models, _changed(models[1])), strict=True):
        model.save_pretrained(tmp_path / name)
        tiny_tokenizer().save_pretrained(tmp_path / name)
    v, u, w = (str(tmp_path / name) for name in "vuw")
    file = tmp_path / "part.json"
    _ask(v, u, tokenizer=None, checkpoint=file)
    (tmp_path / "v" / "model.safetensors").unlink()
    with pytest.raises(KrsError, match="holds other answers. What differs: prompts; n_tokens. Give another file"):
        _ask(v, u, tokenizer=None, target=TARGET[:1], n_tokens=3, checkpoint=file)
    with pytest.raises(KrsError, match=r"What differs: the unlearned model \(weights\). Give another file"):
        _ask(v, w, tokenizer=None, checkpoint=file)


def test_answers_of_a_model_that_differs_in_one_column_are_those_of_another(models, found, tmp_path):
    v, u = models
    with pytest.raises(
        KrsError, match=r"reuse= is of other answers. What differs: the vanilla model \(weights\). Leave"
    ):
        _ask(_changed(v), u, reuse=found)
    file = tmp_path / "part.json"
    found.save(file)
    for pair_ in ((_changed(v), u), (v, _changed(u))):
        side = "vanilla" if pair_[1] is u else "unlearned"
        said = rf"checkpoint='.*' holds other answers. What differs: the {side} model \(weights\). Give another file"
        with pytest.raises(KrsError, match=said):
            _ask(*pair_, checkpoint=file)
    with pytest.raises(KrsError, match="What differs: prompts; n_tokens. Give another file, or remove this one"):
        _ask(v, u, target=TARGET[:1], n_tokens=3, checkpoint=file)
    said = json.loads(file.read_text())
    del said["provenance"]["vanilla"]["identity"]
    file.write_text(json.dumps(said))
    with pytest.raises(
        KrsError, match=r"the vanilla model, perhaps \(an earlier version of krs, which did not look at"
    ):
        _ask(v, u, reuse=load_answers(file))


def test_what_ends_an_answer_belongs_to_the_question(models, found):
    v, u = models
    before = v.generation_config.eos_token_id
    v.generation_config.eos_token_id = [before, 9]
    try:
        with pytest.raises(KrsError, match="What differs: tokens that end an answer"):
            _ask(v, u, reuse=found)
    finally:
        v.generation_config.eos_token_id = before


def test_a_place_that_takes_no_file(models, tmp_path):
    (tmp_path / "file").write_text("x")
    ran = models[0].register_forward_pre_hook(lambda *_: pytest.fail("ran"))
    with pytest.raises(KrsError, match=r"checkpoint: '.*' cannot be written"):
        _ask(*models, checkpoint=tmp_path / "file" / "part.json")
    ran.remove()
    with full_disk(100), pytest.warns(UserWarning, match="go on, but their checkpoint is not kept: cannot write"):
        with pytest.raises(
            KrsError, match="all answers are there, but cannot write .*`partial`, and the directory"
        ) as no:
            _ask(*models, checkpoint=tmp_path / "part.json")
    assert no.value.partial.complete
    assert no.value.partial.frame.nll.notna().all()


def test_a_file_of_answers_is_whole_or_refused(found, tmp_path):
    file = tmp_path / "a.json"
    found.save(file)
    text = file.read_text()

    def refused(change):
        said = json.loads(text)
        said = change(said) or said
        file.write_text(json.dumps(said))
        with pytest.raises(KrsError, match=r"(?s)does not hold answers \(.*\): give a file that Answers.save"):
            load_answers(file)

    for name in ("krs_answers", "rows", "token_ids", "provenance"):
        refused(lambda said, name=name: said.pop(name) and None)
        for value in (None, "x", 3.5, [3], [], {}):
            refused(lambda said, name=name, value=value: said.update({name: value}))
    for name in json.loads(text)["rows"][0]:
        refused(lambda said, name=name: said["rows"][1].pop(name) and None)
        refused(lambda said, name=name: said["rows"][1].update({name: [1]}))
    for ids in (None, [], [[1]], [["x"]] * 3, [[-1]] * 3, [1, 2, 3]):
        refused(lambda said, ids=ids: said["token_ids"].update(vanilla=ids))
    refused(lambda said: said["token_ids"].pop("vanilla") and None)
    refused(lambda said: said["provenance"].pop("bleu") and None)
    refused(lambda said: said["rows"].__setitem__(0, 3))
    refused(lambda said: [said])
    refused(lambda said: said["token_ids"]["unlearned"].pop() and None)  # fewer than its rows say
    refused(lambda said: said["token_ids"]["vanilla"].pop() and None)
    for n in (0, 1, len(text) // 2, len(text) - 1):
        file.write_text(text[:n])
        with pytest.raises(KrsError, match="does not hold answers"):
            load_answers(file)
