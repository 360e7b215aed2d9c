"""With the core alone: what needs an extra says so before it works, and a missing figure is no failure."""

import re
import sys
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

import krs
from krs import KrsError, unlearn
from krs.cli import app
from krs.demo import demo
from krs.extras import missing, require
from krs.plots import plot_sweep
from tests.tiny import pair
from tests.unlearn.tiny_tokenizer import tiny_tokenizer

HOW = re.escape("pip install 'krs[unlearn]' (in a clone: pip install -e \".[unlearn]\")")


@pytest.fixture
def without(monkeypatch):
    """`without("peft")` makes a library impossible to import."""
    return lambda library: monkeypatch.setitem(sys.modules, library, None)


def test_training_without_accelerate_is_refused_before_a_model_is_loaded(without, tmp_path):
    without("accelerate")
    with pytest.raises(KrsError, match=rf"training \(npo\) needs accelerate, which is not installed: {HOW}"):
        unlearn.run("npo", "no/such/model", forget=["the cat sat"], output_dir=tmp_path / "u")
    with pytest.raises(KrsError, match=f"unlearning needs accelerate, which is not installed: {HOW}"):
        demo(tmp_path / "u")
    assert not (tmp_path / "u").exists()


def test_an_adapter_without_peft_is_refused_before_a_model_is_loaded(without):
    without("peft")
    with pytest.raises(KrsError, match=f"parameters='lora' needs peft, which is not installed: {HOW}"):
        unlearn.run("npo", "no/such/model", forget=["the cat sat"], parameters="lora")


def test_a_missing_figure_is_no_failure(without, tmp_path):
    for name, model in zip("vu", pair("llama"), strict=True):
        model.save_pretrained(tmp_path / name)
        tiny_tokenizer().save_pretrained(tmp_path / name)
    (tmp_path / "q.txt").write_text("who wrote the book\n")
    without("matplotlib")
    question, models = str(tmp_path / "q.txt"), [str(tmp_path / "v"), str(tmp_path / "u")]
    sweep = ["--prompts", question, "--n-tokens", "2", "--settings", "attn_out", "--quiet"]
    answers = ["--target", question, "--unrelated", question, "--n-tokens", "2", "--quiet"]
    for command, options, figure, files in [
        ("sweep", sweep, "fig1.png", {"sweep.krs", "krs.csv"}),
        ("answers", answers, "fig2.png", {"answers.json", "answers.csv", "answers.md"}),
        ("drift", [], "drift.png", {"drift.csv"}),
    ]:
        done = CliRunner().invoke(app, [command, *models, *options, "-o", str(tmp_path / command)])
        assert done.exit_code == 0, done.exception
        assert {p.name for p in (tmp_path / command).iterdir()} == files
        assert f"{figure} is left out: a figure needs matplotlib, which is not installed: pip install" in done.stderr
        assert figure not in done.stdout
    result = krs.load_result(tmp_path / "sweep" / "sweep.krs")
    with pytest.raises(KrsError, match="a figure needs matplotlib, which is not installed: pip install 'krs"):
        plot_sweep(result)


def test_the_hints_name_extras_that_there_are():
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    for source in Path(krs.__file__).parent.rglob("*.py"):
        for extra in re.findall(r"krs\[(\w+)\]", source.read_text(encoding="utf-8")):
            assert f"\n{extra} = [" in text
    require("torch", "unlearn", "training")
    assert missing("peft", "unlearn", "lora").startswith("lora needs peft, which is not installed")


def test_no_extra_brings_a_library_that_krs_does_not_speak_of():
    """Tools (docs, test, bench) are run."""
    extras = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    sources = Path(krs.__file__).parent.rglob("*.py")
    words = {word for path in sources for word in re.findall(r"\w+", path.read_text(encoding="utf-8"))}
    for extra, needed in extras["optional-dependencies"].items():
        for requirement in needed if extra not in ("docs", "test", "bench") else ():
            library = re.split(r"[\[>=]", requirement)[0]
            assert {"pyyaml": "yaml", "vl-convert-python": "vl_convert"}.get(
                library, library.replace("-", "_")
            ) in words, f"{extra}: {library}"
