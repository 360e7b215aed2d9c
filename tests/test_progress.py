"""Bars for those who watch, lines now and then for log files, nothing where nothing is asked for."""

import io
import json
import re
import sys
import warnings
from importlib import import_module
from itertools import pairwise

import pytest
import transformers.trainer
from transformers.utils.notebook import NotebookProgressCallback

import krs
from krs import progress, study, unlearn
from krs.progress import bar
from krs.restore import engines, plain
from krs.restore.job import Progress
from tests.instruments.case import FACTS
from tests.study.small import asked, home, written
from tests.tiny import build, perturbed
from tests.unlearn.tiny_tokenizer import tiny_tokenizer

GREEDY = import_module("krs.generation.greedy")


class _Terminal(io.StringIO):
    def isatty(self):
        return True


def _steps(show, to, monkeypatch):
    monkeypatch.setattr(sys, "stderr", to)
    with bar(3, "sweep", show=show, unit="step") as shown:
        for _ in range(3):
            shown.update()
            shown.set_postfix_str("more")
    return to.getvalue()


def test_a_terminal_gets_a_bar(monkeypatch):
    said = _steps(True, _Terminal(), monkeypatch)
    assert "sweep: 100%" in said
    assert "3/3" in said


def test_a_log_file_gets_one_line_a_stage(monkeypatch):
    assert _steps(True, io.StringIO(), monkeypatch) == "sweep: 3 steps\n"


def test_on_the_command_line_a_warning_is_a_line_and_no_line_comes_twice(capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        usual = warnings.showwarning
        with progress.warnings_as_lines():
            for _ in range(2):
                warnings.warn("most answers are empty", krs.KrsWarning, stacklevel=1)
                progress.told("note: most answers are empty")
                progress.told("scored, for one: a -> b")
        assert warnings.showwarning is usual
    assert capsys.readouterr().err == "note: most answers are empty\nscored, for one: a -> b\n"
    progress.told("again")
    progress.told("again")
    assert capsys.readouterr().err == "again\nagain\n"


def test_nothing_is_shown_where_nothing_is_asked_for(monkeypatch):
    for to in (io.StringIO(), _Terminal()):
        assert not _steps(False, to, monkeypatch)


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test turns."""

    class Clock:
        now = 100.0

    monkeypatch.setattr(progress.time, "monotonic", lambda: Clock.now)
    return Clock


def test_a_log_file_is_told_how_far_it_is_now_and_then_and_where_it_ended(clock, capsys):
    with bar(60, "unlearn (npo)", show=True, unit="step", done=20) as shown:
        for step in range(40):
            clock.now += 3
            shown.set_postfix({"loss": f"{step}.500"})
            shown.update()
    assert capsys.readouterr().err.splitlines() == [
        "unlearn (npo): 60 steps, 20 of them done before",
        "unlearn (npo): 30 of 60 steps, after 30 s, about 90 s left (loss 9.500)",
        "unlearn (npo): 40 of 60 steps, after 60 s, about 60 s left (loss 19.500)",
        "unlearn (npo): 50 of 60 steps, after 90 s, about 30 s left (loss 29.500)",
        "unlearn (npo): 60 of 60 steps, after 2 min (loss 39.500)",
    ]


def test_a_night_does_not_flood_a_log_file_and_never_leaves_it_silent_for_longer_than_ten_minutes(clock, capsys):
    said = []
    with bar(36_000, "sweep", show=True, unit="step") as shown:
        for _ in range(36_000):
            clock.now += 1
            shown.update()
            said += [clock.now] if capsys.readouterr().err else []
    assert len(said) < 100
    assert max(later - earlier for earlier, later in pairwise(said)) <= 600


def test_bytes_are_told_in_their_own_units(clock, capsys):
    with bar(5_000_000_000, "reading", show=True, unit="B", scale=True) as shown:
        clock.now += 40
        shown.update(1_250_000_000)
    first, second, _ = capsys.readouterr().err.splitlines()
    assert (first, second) == (
        "reading: 5,000,000,000 B",
        "reading: 1.25GB of 5.00GB, after 40 s, about 2 min left",
    )


def test_a_stage_without_steps_of_its_own_is_alive_while_what_is_in_it_is(clock, capsys):
    with bar(None, "relearn (about 90 s)", show=True):
        with bar(3, "relearning", show=False) as inner:
            for _ in range(3):
                clock.now += 20
                inner.update()
    with bar(3, "alone", show=False) as inner:
        clock.now += 500
        inner.update()
    assert capsys.readouterr().err.splitlines() == [
        "relearn (about 90 s)",
        "relearn (about 90 s): after 40 s",
        "relearn (about 90 s): after 60 s",
    ]


def test_what_an_earlier_call_did_says_nothing_about_how_long_the_rest_takes(clock, monkeypatch, capsys):
    class Engine:
        name, exact = "slow", True

        def run(self, job):
            yield Progress(90, earlier=True)
            for _ in range(10):
                clock.now += 40
                yield Progress(1)

        def steps(self, job):
            return 100

    monkeypatch.setattr(engines, "ENGINES", engines.ENGINES.copy())
    engines.register_engine(Engine())
    vanilla = build("llama")
    with pytest.raises(krs.KrsError, match="has ended"):
        krs.sweep(vanilla, perturbed(vanilla), [[1, 2, 3]], n_tokens=2, windows=3, engine="slow")
    assert "91 of 100 steps, after 40 s, about 6 min left" in capsys.readouterr().err


def _unlearn(**options):
    given = {"forget": ["the cat sat"], "steps": 2, "tokenizer": tiny_tokenizer()}
    return unlearn.run("ga", build("llama"), **given | options)


def test_training_shows_nothing_in_a_notebook_either_where_nothing_is_asked_for(monkeypatch, capsys):
    """transformers shows a table of its own there."""
    monkeypatch.setattr(transformers.trainer, "DEFAULT_PROGRESS_CALLBACK", NotebookProgressCallback)
    _unlearn(progress=False)
    said = capsys.readouterr()
    assert said.out + said.err == ""


def test_training_says_one_line_in_a_log_file(capsys):
    _unlearn()
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == "unlearn (ga): 2 steps\n"


def test_training_that_takes_longer_says_its_step_and_that_step_s_loss(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(progress, "_EVERY", 0.0)
    _unlearn(steps=3, output_dir=tmp_path / "u")
    log = json.loads((tmp_path / "u" / unlearn.REPORT).read_text())["log"]
    said = capsys.readouterr().err.splitlines()[1:4]
    found = [re.fullmatch(r"unlearn \(ga\): (\d) of 3 steps, .*\(loss (-?[\d.]+)\)", line).groups() for line in said]
    assert found == [(str(n), f"{entry['loss']:.3f}") for n, entry in enumerate(log, 1)]


def test_no_pass_over_the_texts_is_silent(capsys, monkeypatch):
    """npo asks the vanilla model about every text before it trains."""
    monkeypatch.setattr(progress, "_EVERY", 0.0)
    given = {"forget": ["the cat sat"] * 3, "steps": 1, "batch_size": 2, "tokenizer": tiny_tokenizer()}
    unlearn.run("npo", build("llama"), **given)
    said = [re.sub(r", (after|about) [^,]*", "", line) for line in capsys.readouterr().err.splitlines()]
    assert said[:3] == [
        "vanilla likelihood (forget): 3 texts",
        "vanilla likelihood (forget): 2 of 3 texts",
        "vanilla likelihood (forget): 3 of 3 texts",
    ]


def test_a_study_says_how_far_a_long_step_is_and_of_which_cell(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(progress, "_EVERY", 0.0)
    place = home(tmp_path)
    spec = asked(pairs=[], methods=[asked()["methods"][0]], steps={"prepare": {"n_tokens": 4}, "unlearn": {}})
    study.run(written(place, spec), place / "out")
    said = capsys.readouterr().err.splitlines()
    assert [line for line in said if line.startswith("v--cat--ga--default--s0: unlearn (ga): 1 of 2 steps, after ")]
    study.run(written(place, spec | {"methods": asked()["methods"][1:]}), place / "out", progress=False)
    assert capsys.readouterr().err == ""


def _twice(call, monkeypatch, capsys, where, name, after):
    """What a call says on stderr when an earlier one was interrupted at the `after`-th call of a function."""
    real, calls = getattr(where, name), []

    def stop(*args, **options):
        calls.append(1)
        if len(calls) > after:
            raise KeyboardInterrupt
        return real(*args, **options)

    with monkeypatch.context() as patched:
        patched.setattr(where, name, stop)
        with pytest.raises(KeyboardInterrupt):
            call()
    assert "going on" not in capsys.readouterr().err
    call()
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("going on")]


MANY = [[5, 9, 11]] * 18
"""More than are answered at once."""


def test_an_interrupted_sweep_says_what_it_goes_on_from(monkeypatch, capsys, tmp_path):
    vanilla = build("llama")
    unlearned, file = perturbed(vanilla), tmp_path / "a.krs"

    def sweep(prompts, **options):
        krs.sweep(vanilla, unlearned, prompts, windows=3, n_tokens=2, engine="plain", checkpoint=file, **options)

    said = _twice(lambda: sweep(MANY[:2]), monkeypatch, capsys, plain, "logits_at", 6)
    size = "(16 for each of 2 prompts)"
    assert said == [f"going on: all 2 scored answers and 8 of 32 restorations were in {str(file)!r} {size}"]
    sweep(MANY[:2])
    whole = f"done already: all 2 scored answers and all 32 restorations are in {str(file)!r} {size}\n"
    said = capsys.readouterr().err
    assert whole in said
    assert "sweep: " not in said
    sweep(MANY[:2], progress=False)
    assert capsys.readouterr().err == ""
    file = tmp_path / "b.krs"
    said = _twice(lambda: sweep(MANY), monkeypatch, capsys, GREEDY, "_lockstep", 1)
    assert said[0].startswith("going on: 16 of 18 scored answers and 0 of 288 restorations were in ")


def test_interrupted_answers_say_what_they_go_on_from(monkeypatch, capsys, tmp_path):
    vanilla, file = build("llama"), str(tmp_path / "a.json")
    unlearned, reader = perturbed(vanilla), tiny_tokenizer()

    def answers():
        krs.metrics.answers(vanilla, unlearned, MANY, tokenizer=reader, n_tokens=2, checkpoint=file)

    assert _twice(answers, monkeypatch, capsys, GREEDY, "_lockstep", 3) == [
        f"going on: all 18 vanilla answers and 16 of 18 unlearned answers were in {file!r}"
    ]


def test_an_interrupted_dissection_says_what_it_goes_on_from(monkeypatch, capsys, tmp_path):
    from krs.instruments.relearn import Relearn

    vanilla = build("llama")
    options = {"tokenizer": tiny_tokenizer(), "n_tokens": 8, "chat": False, "output_dir": tmp_path}

    def dissect():
        krs.dissect(vanilla, perturbed(vanilla), FACTS, only=["nll", "recall", "relearn"], nulls=False, **options)

    said = _twice(dissect, monkeypatch, capsys, Relearn, "measure", 0)
    assert said == [f"going on: 2 of 3 readings were in {str(tmp_path)!r}"]


def test_interrupted_training_says_what_it_goes_on_from(monkeypatch, capsys, tmp_path):
    from krs.unlearn.trainer import UnlearnTrainer

    def train():
        _unlearn(steps=4, save_steps=1, output_dir=tmp_path / "u")

    said = _twice(train, monkeypatch, capsys, UnlearnTrainer, "compute_loss", 2)
    assert said == [f"going on: 2 of 4 steps were in {str(tmp_path / 'u' / 'checkpoints' / 'checkpoint-2')!r}"]


def test_an_interrupted_study_and_what_is_prepared_for_one_say_what_they_go_on_from(monkeypatch, capsys, tmp_path):
    from krs.study.measuring import Sweep
    from krs.unlearn.prepare import prepare

    place = home(tmp_path)
    spec = written(place, asked(pairs=[]))
    said = _twice(lambda: study.run(spec, place / "out"), monkeypatch, capsys, Sweep, "run", 1)
    assert said == [f"going on: 7 of 10 steps were in {str(place / 'out')!r} (1 of 2 cells whole)"]

    def prepared():
        prepare(place / "cat.json", place / "v", place / "prepared", chat=True, retain_from=str(place / "dog.json"))

    told = json.loads((place / "dog.json").read_text())
    (place / "dog.json").write_text(json.dumps(told | {"retain_questions": ["who sat in the sun", "what ran on it"]}))
    said = _twice(prepared, monkeypatch, capsys, GREEDY, "_lockstep", 1)
    assert said[0].startswith("going on: all 2 forget answers and 0 of 2 retain answers were in ")
