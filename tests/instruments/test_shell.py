"""`krs dissect` from the shell, interrupted and gone on with."""

import pytest
from typer.testing import CliRunner

from krs import KrsError
from krs.cli import app
from krs.files import in_options
from krs.instruments import load_dissection
from krs.instruments.facts import write_facts
from tests.instruments.case import FACTS, OTHERS
from tests.tiny import build, perturbed
from tests.unlearn.tiny_tokenizer import tiny_tokenizer


@pytest.fixture
def call(tmp_path):
    """`krs dissect` of saved models, with further options; what it writes is in `out`."""
    vanilla = build("llama", vocab_size=len(tiny_tokenizer()))
    models = {"v": vanilla, "u": perturbed(vanilla), "r": perturbed(vanilla, seed=5)}
    for name, model in models.items():
        model.save_pretrained(tmp_path / name)
        tiny_tokenizer().save_pretrained(tmp_path / name)
    (tmp_path / "t.jsonl").write_text(write_facts(FACTS), encoding="utf-8")
    (tmp_path / "o.jsonl").write_text(write_facts(OTHERS), encoding="utf-8")
    given = [tmp_path / "v", tmp_path / "u", "--target", tmp_path / "t.jsonl", "-o", tmp_path / "out", "-q"]

    def run(*more):
        return CliRunner().invoke(app, ["dissect", *map(str, [*given, "--no-chat", *more])])

    return run


def test_a_dissection_from_the_shell(call, tmp_path):
    options = ["--unrelated", tmp_path / "o.jsonl", "--retain", tmp_path / "r", "--budget", "none"]
    done = call(*options, "--only", "uds", "--only", "nll", "--n-tokens", 8)
    assert done.exit_code == 0, done.exception
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"readings", "report.html", "report.json"}
    found = load_dissection(tmp_path / "out" / "report.json")
    assert list(found.readings) == ["uds", "nll"]
    assert set(found.readings["nll"].nulls) == {"same", "never_knew"}
    assert [fact.question for fact in found.facts] == [fact.question for fact in FACTS]
    assert repr(found) in done.stdout
    bare = call("--only", "nll", "--no-nulls")
    assert "nulls:" not in bare.stdout


def test_interrupted_it_says_what_is_kept_and_the_same_command_goes_on(call, tmp_path, monkeypatch):
    from krs.instruments.probe import Probe

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Probe, "measure", stop)
        stopped = call("--only", "nll", "--only", "probe")
    assert stopped.exit_code == 130
    kept = f"the readings so far are in '{tmp_path / 'out'}'; the same command goes on from there"
    assert stopped.stderr == f"krs: interrupted; {kept}\n"
    before = (tmp_path / "out" / "readings" / "nll.json").stat().st_mtime_ns
    assert call("--only", "nll", "--only", "probe").exit_code == 0
    assert (tmp_path / "out" / "readings" / "nll.json").stat().st_mtime_ns == before


def test_mistakes_are_told_in_the_shells_words(call):
    assert in_options(str(call("--budget", "soon").exception)).startswith("--budget 'soon': give seconds")
    wrong = call("--only", "ndl").exception
    assert isinstance(wrong, KrsError)
    assert "Did you mean 'nll'?" in str(wrong)
