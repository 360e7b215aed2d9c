"""Training is watched from outside, which changes nothing about it, and stops at what is seen."""

import json
from dataclasses import replace

import pytest
import torch

from krs import KrsError, instruments, unlearn
from krs.instruments import instrument
from krs.unlearn.watching import condition
from tests.instruments.case import FACTS, tiny_case
from tests.tiny import build, perturbed, same_state, state
from tests.unlearn.tiny_tokenizer import tiny_tokenizer

FORGET = [(fact.question, fact.answer) for fact in FACTS]


def _run(vanilla, **options):
    given = {"forget": FORGET, "tokenizer": tiny_tokenizer(), "progress": False, "learning_rate": 1e-2, "batch_size": 2}
    return unlearn.run("ga", vanilla, **given | options)


def _watch(vanilla, **options):
    return instruments.watch(vanilla, tiny_tokenizer(), FACTS, chat=False, n_tokens=8, **options)


def test_instruments_are_read_at_their_steps_and_training_stops_at_what_they_say(tmp_path):
    vanilla = build("llama", vocab_size=len(tiny_tokenizer()))
    retain = perturbed(vanilla, seed=5, scale=0.2)
    before = state(vanilla)
    looks = _watch(vanilla, instruments=["nll_tail", "state_drop", "uds"], every=2, retain=retain)
    out = tmp_path / "u"
    model = _run(vanilla, steps=20, watch=looks, stop_when="nll_tail > 8 and nll_tail >= 8", output_dir=out)
    report = json.loads((out / "krs_unlearn.json").read_text(encoding="utf-8"))
    seen = report["watched"]
    assert [row["step"] for row in seen] == list(range(0, report["steps"] + 1, 2))
    assert 0 < report["steps"] < 20
    assert [row["nll_tail"] > 8 for row in seen] == [False] * (len(seen) - 1) + [True]
    assert report["stopped"] == f"nll_tail {seen[-1]['nll_tail']:.3f} > 8 and nll_tail {seen[-1]['nll_tail']:.3f} >= 8"
    case = replace(tiny_case(), vanilla=vanilla, retain=retain)
    for row, one in ((seen[0], vanilla), (seen[-1], model)):
        for name in ("nll_tail", "state_drop", "uds"):
            assert row[name] == pytest.approx(instrument(name).measure(replace(case, unlearned=one)).mean, abs=1e-5)
    assert same_state(vanilla, before)


def test_watching_changes_nothing_about_training():
    vanilla = build("llama", vocab_size=len(tiny_tokenizer()), attention_dropout=0.3)
    modes = []

    def look(model, step):
        modes.append(model.training)
        torch.rand(3)
        return {"step_seen": step}

    plain = _run(vanilla, steps=3)
    watched = _run(vanilla, steps=3, watch=look)
    assert same_state(watched, state(plain))
    assert modes == [False] * 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stop_when": "x > 1"}, "stop_when= reads what watch= returns: pass watch= too"),
        ({"watch": lambda *_: {"x": 1.0}, "stop_when": "x = 1"}, "stop_when='x = 1': give a name, a sign"),
        ({"watch": lambda *_: {"x": 1.0}, "stop_when": "y > 1"}, "stop_when= names 'y', and watch= returns x"),
        ({"watch": lambda *_: 3.0}, "watch= returned a float .3.0.: it has to return numbers by name"),
        ({"watch": lambda *_: {"x": "high"}}, "watch= returned 'high' for 'x'"),
    ],
)
def test_what_could_not_be_watched_is_said_before_a_step(options, message):
    with pytest.raises(KrsError, match=message):
        _run(build("llama", vocab_size=len(tiny_tokenizer())), steps=1, **options)


def test_an_edit_is_not_watched():
    with pytest.raises(KrsError, match="memit_empty does not train, so watch= and stop_when= would be ignored"):
        unlearn.run("memit_empty", "nowhere", forget=["x"], corpus=["x"], watch=lambda *_: {})


def test_a_watch_that_could_read_nothing_is_refused():
    vanilla = build("llama", vocab_size=len(tiny_tokenizer()))
    with pytest.raises(KrsError, match="'uds' does not apply here: it needs retain"):
        _watch(vanilla, instruments=["uds"])
    with pytest.raises(KrsError, match="every=0: give a number of steps"):
        _watch(vanilla, every=0)


def test_numbers_are_read_as_they_are_written():
    assert condition("a.b-c <= -1.5e-3").parts == (("a.b-c", "<=", -1.5e-3),)
    assert condition("x<2").reached({"x": float("nan")}) is None
