"""`krs study` in the shell."""

import pytest
from typer.testing import CliRunner

from krs import KrsError
from krs.cli import app
from tests.study.small import asked, home, written

pytestmark = pytest.mark.filterwarnings("ignore")


def _krs(*args):
    return CliRunner().invoke(app, ["study", *map(str, args)])


def test_run_status_and_show(tmp_path):
    place = home(tmp_path)
    steps = {"prepare": {"n_tokens": 2}, "drift": {}}
    spec, out = written(place, asked(models=[], methods=[], steps=steps)), place / "out"
    dry = _krs(spec, "-o", out, "--dry-run")
    assert "to do   v--cat--public--published  prepare? drift?\n1 cell: 1 to do\nmemory: about" in dry.stdout
    assert not out.exists()
    done = _krs("run", spec, "-o", out, "--quiet")
    assert (done.exit_code, done.exception) == (0, None)
    assert "1 cell: 1 done" in done.stdout
    assert "results/: drift.csv" in done.stdout
    assert _krs(spec, "-o", out).exit_code == 0
    assert _krs("status", out).stdout == "done    v--cat--public--published  prepare drift\n1 cell: 1 done\n"
    assert "drift.csv, log.txt" in _krs("show", out, "v--cat").stdout
    assert isinstance(_krs("show", out, "w").exception, KrsError)
    for wrong in (["status"], ["show", out], [spec], [spec, out]):
        assert isinstance(_krs(*wrong).exception, KrsError)


def test_a_failed_cell_is_in_the_exit_code(tmp_path):
    place = home(tmp_path)
    broken = {"name": "ga", "settings": {"learning_rate": 1e30, "steps": 2, "max_grad_norm": 1e30}}
    steps = {"prepare": {"n_tokens": 2}, "unlearn": {}}
    spec = written(place, asked(methods=[broken], pairs=[], steps=steps))
    done = _krs(spec, "-o", place / "out")
    assert done.exit_code == 1
    assert "failed: v--cat--ga--default--s0 (krs study show" in done.stdout
    assert "1/1 v--cat--ga--default--s0: failed in unlearn: KrsError: " in done.stderr
