"""Two processes on one directory, one that is killed, a full disk: nothing is lost, done twice or half written."""

import json
import os
import random
import signal
import subprocess
import sys
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
import accelerate, peft, transformers, krs.demo, krs.unlearn.train, krs.restore.sweep
from krs import study, writing
from krs.study import carry, training
from krs.study.manifest import Manifest

# One interpreter that forks: each line of stdin is a run of its own, `where it kills itself` and `largest file`.
STEP = ["begin"]

def work(spec, out, at, limit):
    def killed(why):
        if at == why:
            os.kill(os.getpid(), signal.SIGKILL)
    if limit:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    sync, run, write = writing._sync, carry.Carrier._run, Manifest.write
    save = transformers.Trainer._save_checkpoint
    def synced(path):
        killed("write:" + STEP[0])
        sync(path)
    def running(self, made, *rest):
        STEP[0] = made.name
        killed("before:" + made.name)
        manifest = run(self, made, *rest)
        killed("after:" + made.name)
        return manifest
    def manifest_written(self, folder):
        killed("manifest:" + self.step)
        write(self, folder)
    def saved(self, *args, **kwargs):
        save(self, *args, **kwargs)
        killed("training")
    writing._sync, carry.Carrier._run, Manifest.write = synced, running, manifest_written
    transformers.Trainer._save_checkpoint = saved
    return 1 if study.run(spec, out).failed else 0

for line in sys.stdin:
    spec, out, at, limit, seconds = line.rstrip("\\n").split("\\t")
    child = os.fork()
    if not child:
        code = 9
        try:
            code = work(spec, out, at, int(limit))
        finally:
            sys.stderr.flush()
            os._exit(code)
    if float(seconds):
        import time
        time.sleep(float(seconds))
        os.kill(child, signal.SIGKILL)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Forks:
    """Runs of studies in processes of their own, which come from one that has imported everything."""

    def __init__(self, log):
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": log.open("w")}
        self.log = log
        self.process = subprocess.Popen([sys.executable, "-c", PROGRAM], env=environment, cwd=ROOT, text=True, **pipes)

    def begin(self, spec, out, at="", limit=0, seconds=0.0):
        self.process.stdin.write("\t".join(map(str, (spec, out, at, limit, seconds))) + "\n")
        self.process.stdin.flush()

    def end(self):
        """The exit status of the run that was begun."""
        return int(self.process.stdout.readline())

    def run(self, *args, **options):
        self.begin(*args, **options)
        return self.end()


@pytest.fixture
def forks(tmp_path):
    """`forks()` starts one."""
    started = []

    def start():
        started.append(Forks(tmp_path / f"log{len(started)}.txt"))
        return started[-1]

    yield start
    for one in started:
        one.process.communicate()


@pytest.mark.long
def test_two_processes_share_the_cells(tmp_path, forks):
    place = home(tmp_path)
    methods = [{"name": "ga", "settings": {"learning_rate": 1e-2, "steps": 2, "batch_size": 2}}]
    steps = {"prepare": {"n_tokens": 2}, "unlearn": {}, "drift": {}}
    spec = written(place, asked(methods=methods, seeds=[0, 1, 2], pairs=[], steps=steps))
    both = [forks(), forks()]
    for one in both:
        one.begin(spec, place / "out")
    ended = [one.end() for one in both]
    said = [one.log.read_text() for one in both]
    assert ended == [0, 0], said
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
def test_killed_at_any_moment_it_ends_as_one_that_was_not(tmp_path, forks):
    place = home(tmp_path)
    spec = written(place, asked(keep="difference"))
    study.run(spec, place / "whole", progress=False)
    seen, one = {}, forks()
    for at in KILLS:
        assert one.run(spec, place / "out", at) == -signal.SIGKILL, (at, one.log.read_text())
        done = {p.parent: p.stat().st_mtime_ns for p in (place / "out" / "steps").rglob(NAME)}
        assert {k: done.get(k) for k in seen} == seen  # nothing that was finished is done again
        seen = {k: v for k, v in done.items() if "unlearn" not in str(k)}  # whose weights are packed and unpacked
    for _ in range(4):  # at any moment whatever
        one.run(spec, place / "out", seconds=random.Random().uniform(0.1, 2))
    assert one.run(spec, place / "out") == 0, one.log.read_text()
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
def test_a_disk_that_takes_no_more_fails_cells_and_is_gone_on_from(tmp_path, forks):
    place = home(tmp_path)
    spec = written(place, asked())
    study.run(spec, place / "whole", progress=False)
    one = forks()
    assert one.run(spec, place / "out", limit=24_000) > 0, one.log.read_text()  # less than a model, and than a figure
    assert "File too large" in one.log.read_text()
    failures = [json.loads(p.read_text()) for p in (place / "out" / "failed").iterdir()]
    assert {f["step"] for f in failures} == {"unlearn"}
    assert all("Traceback" in f["traceback"] for f in failures)
    assert all(found is None or found.artefacts for found in manifests(place / "out").values())
    assert one.run(spec, place / "out") == 0, one.log.read_text()
    assert contents(place / "out") == contents(place / "whole")
    assert not list((place / "out" / "failed").iterdir())
