"""Two processes on one directory, one that is killed, a full disk: nothing is lost, done twice or half written."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from krs import study
from krs.study.manifest import NAME
from tests.study.small import asked, contents, home, manifests, written

pytestmark = pytest.mark.filterwarnings("ignore")
ROOT = Path(__file__).parents[2]

PROGRAM = """
import os, resource, signal, sys, warnings
warnings.simplefilter("ignore")
import torch
torch.set_num_threads(1)
from krs import study, writing
from krs.study import carry

at, limit = sys.argv[3], int(sys.argv[4])
if limit:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

def killed(why):
    if at == why:
        os.kill(os.getpid(), signal.SIGKILL)

if at:
    sync, write_run = writing._sync, carry.Carrier._run
    def synced(path):
        killed("write:" + os.environ["KRS_STEP"])
        sync(path)
    def run(self, made, work, key, inputs):
        os.environ["KRS_STEP"] = made.name
        killed("before:" + made.name)
        manifest = write_run(self, made, work, key, inputs)
        killed("after:" + made.name)
        return manifest
    os.environ["KRS_STEP"] = "begin"
    writing._sync, carry.Carrier._run = synced, run
    from krs.study.manifest import Manifest
    write = Manifest.write
    def manifest_written(self, folder):
        killed("manifest:" + self.step)
        write(self, folder)
    Manifest.write = manifest_written
    if at == "training":
        from krs.unlearn import callbacks
        import transformers
        save = transformers.Trainer._save_checkpoint
        def saved(self, *args, **kwargs):
            save(self, *args, **kwargs)
            killed("training")
        transformers.Trainer._save_checkpoint = saved

found = study.run(sys.argv[1], sys.argv[2])
sys.exit(1 if found.failed else 0)
"""


def _started(spec, out, at="", limit=0):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", PROGRAM, str(spec), str(out), at, str(limit)]
    return subprocess.Popen(command, env=environment, cwd=ROOT, stderr=subprocess.PIPE, text=True)


def test_two_processes_share_the_cells(tmp_path):
    place = home(tmp_path)
    methods = [{"name": "ga", "settings": {"learning_rate": 1e-2, "steps": 2, "batch_size": 2}}]
    steps = {"prepare": {"n_tokens": 2}, "unlearn": {}, "drift": {}}
    spec = written(place, asked(methods=methods, seeds=[0, 1, 2], pairs=[], steps=steps))
    both = [_started(spec, place / "out") for _ in range(2)]
    said = [process.communicate()[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert sum(": done in" in line for text in said for line in text.splitlines()) == 3, said
    logs = [log.read_text() for log in (place / "out" / "steps").rglob("log.txt")]
    assert len(logs) == 1 + 3 + 3
    assert all(log.count(" begins\n") == 1 for log in logs)
    study.run(spec, place / "alone", progress=False)
    assert contents(place / "out") == contents(place / "alone")


KILLS = (
    *("before:prepare", "write:prepare", "manifest:prepare", "after:prepare"),
    *("write:unlearn", "training", "manifest:unlearn", "after:unlearn"),
    *("write:sweep", "manifest:sweep", "write:answers", "manifest:answers", "write:drift", "manifest:drift"),
)


@pytest.mark.long
def test_killed_at_any_moment_it_ends_as_one_that_was_not(tmp_path):
    place = home(tmp_path)
    spec = written(place, asked(keep="difference"))
    study.run(spec, place / "whole", progress=False)
    seen = {}
    for at in KILLS:
        process = _started(spec, place / "out", at)
        process.communicate()
        assert process.returncode == -signal.SIGKILL, at
        done = {p.parent: p.stat().st_mtime_ns for p in (place / "out" / "steps").rglob(NAME)}
        assert {k: done.get(k) for k in seen} == seen  # nothing that was finished is done again
        seen = {k: v for k, v in done.items() if "unlearn" not in str(k)}  # whose weights are packed and unpacked
    for _ in range(4):  # at any moment whatever
        process = _started(spec, place / "out")
        time.sleep(random.Random().uniform(4, 12))
        process.kill()
        process.communicate()
    last = _started(spec, place / "out")
    assert last.wait() == 0, last.communicate()
    assert contents(place / "out") == contents(place / "whole")
    assert not list((place / "out").rglob(".krs-*"))
    theirs = {at: m.artefacts.keys() for at, m in manifests(place / "whole").items()}
    assert {at: m.artefacts.keys() for at, m in manifests(place / "out").items()} == theirs
    exact = ("model.safetensors", "krs.csv", "answers.csv", "drift.csv", "forget.jsonl", "difference.safetensors")
    for at, whole in manifests(place / "whole").items():
        mine = manifests(place / "out")[at].artefacts
        for name, about in whole.artefacts.items():
            assert not name.endswith(exact) or mine[name] == about, (at, name)


@pytest.mark.long
def test_a_disk_that_takes_no_more_fails_cells_and_is_gone_on_from(tmp_path):
    place = home(tmp_path)
    spec = written(place, asked())
    study.run(spec, place / "whole", progress=False)
    full = _started(spec, place / "out", limit=24_000)  # less than a model
    said = full.communicate()[1]
    assert full.returncode == 1, said
    assert "File too large" in said
    failures = [json.loads(p.read_text()) for p in (place / "out" / "failed").iterdir()]
    assert {f["step"] for f in failures} == {"unlearn"}
    assert all("Traceback" in f["traceback"] for f in failures)
    assert all(found is None or found.artefacts for found in manifests(place / "out").values())
    again = _started(spec, place / "out")
    assert (again.communicate()[1], again.returncode)[1] == 0
    assert contents(place / "out") == contents(place / "whole")
    assert not list((place / "out" / "failed").iterdir())
