"""`krs doctor`, `krs methods`, and what holds for every command."""

import dataclasses
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

import krs
from krs import KrsError, files
from krs.files import windows
from krs.restore import plain
from krs.unlearn.methods import method
from tests.cli.told import run


def test_the_doctor_finds_both_engines_alike_and_says_so_where_they_are_not(monkeypatch):
    done = run("doctor")
    assert done.exit_code == 0, done.output
    assert f"krs {krs.__version__}" in done.stdout
    assert "extra plot: matplotlib " in done.stdout
    apart = re.search(r"self-test on cpu in float64: fine, scores of the two engines differ by (\S+) at", done.stdout)
    assert float(apart[1]) < 1e-9
    real = plain.logits_at
    monkeypatch.setattr(plain, "logits_at", lambda *args: real(*args) + 1e-6 * torch.rand(()))
    wrong = run("doctor")
    assert wrong.exit_code == 1
    assert "self-test on cpu in float64: FAILED" in wrong.stdout


def test_methods_and_their_settings_with_defaults_and_what_they_mean():
    listed = run("methods").stdout.splitlines()
    assert [line.split(":")[0] for line in listed] == krs.unlearn.methods()
    for name in krs.unlearn.methods():
        said = run("methods", name).stdout
        assert "see its documentation" not in said, name
        for setting in dataclasses.fields(method(name).config_class):
            shown = re.search(rf"^- ({setting.name}=.*?): ", said, re.M)[1]
            default = files.setting(shown)[1]  # as --set would read it
            assert method(name).config_class(**{setting.name: default}) == method(name).config_class()
    said = run("methods", "npo_kl").stdout
    assert "needs --forget and --retain; settings" in said
    assert "\n- retain_weight=100.0: w of the retain term." in said
    assert "unknown unlearning method 'npoo'" in str(run("methods", "npoo").exception)


def test_the_doctor_knows_every_extra_and_all_that_it_brings():
    from krs.cli.doctor import _DISTRIBUTIONS, _EXTRAS

    project = tomllib.loads((Path(krs.__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = {extra: "\n".join(of) for extra, of in project["optional-dependencies"].items()}
    wanted = {extra: set(re.findall(r"^[\w-]+(?=>)", of, re.M)) for extra, of in extras.items()}
    assert "krs[unlearn]" in extras["study"]
    wanted["study"] |= wanted["unlearn"]
    for extra in ("docs", "test", "bench", "all"):  # nothing in krs asks for these
        del wanted[extra]
    own = {extra: {_DISTRIBUTIONS.get(name, name) for name in libraries} for extra, libraries in _EXTRAS.items()}
    assert own == wanted


def test_without_an_extra_the_doctor_says_how_to_get_it(monkeypatch):
    from krs.cli.doctor import _extras

    monkeypatch.setitem(sys.modules, "peft", None)
    (line,) = [line for line in _extras() if line.startswith("extra unlearn")]
    assert line == (
        "extra unlearn: not installed; it needs peft, which is not installed: pip install 'krs[unlearn]' (in a clone: "
        'pip install -e ".[unlearn]")'
    )


def test_the_package_is_the_command_and_refuses_before_torch(tmp_path):
    env = os.environ | {"PYTHONPATH": str(Path(krs.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "krs", "show", str(tmp_path / "no.krs")],
        capture_output=True,
        text=True,
        check=False,
        env=env,
    )
    assert done.returncode == 2
    assert f"krs: no file '{tmp_path / 'no.krs'}'" in done.stderr
    assert not re.search(r"\| +(torch|transformers|pandas|matplotlib)$", done.stderr, re.M)


def test_windows_as_an_option_has_them():
    assert windows("centred:3") == windows("3") == ("centred", (3,))
    assert windows("last:2") == ("last", (2,))
    assert windows("1-2,5") == ("of", ([[1, 2], [5]],))
    for wrong in ("4", "centred:2"):
        with pytest.raises(KrsError, match=f"--window {wrong}: .* so its size is odd: give ., or sliding:"):
            windows(wrong)
    for wrong in ("sliding", "sliding:0", "3-1", "x", "each:2", ""):
        with pytest.raises(KrsError, match=f"--window '{wrong}': give 5 or centred:5, sliding:4, each"):
            windows(wrong)
