"""SIGTERM, which batch systems send some seconds before they kill: a command keeps what Ctrl-C would keep."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

import krs
from tests.tiny import pair
from tests.unlearn.tiny_tokenizer import tiny_tokenizer

# Each step takes a while, and says when it is done, so that the signal comes between the first and the last.
_SCRIPT = """
import sys, time
sys.path.insert(0, {root!r})
from pathlib import Path
import torch
torch.set_num_threads(1)
def slow(*_, **__):
    Path({mark!r}).touch()
    time.sleep(0.1)
import krs.restore.checkpoint as checkpoint
before = checkpoint.SavingBar.update
checkpoint.SavingBar.update = lambda self, n=1: (before(self, n), n and slow())
if "answers" in sys.argv or "prepare" in sys.argv or "wavefront" in sys.argv:
    import importlib
    greedy = importlib.import_module("krs.generation.greedy")
    greedy._BATCH, ask, begun = 1, greedy._lockstep, []
    def second(*args):
        if begun:
            Path({mark!r}).touch()
            time.sleep(60)
        begun.append(1)
        return ask(*args)
    greedy._lockstep = second
if "unlearn" in sys.argv:
    import krs.unlearn.train as train
    train.OneBar.on_step_end = slow
from krs.cli import main
main()
"""


def _commands(folder):
    v, u = str(folder / "v"), str(folder / "u")
    sweep = ["sweep", v, u, "--prompts", str(folder / "p.txt"), "-o", str(folder / "out")]
    train = ["unlearn", "ga", "--model", v, "--forget", str(folder / "p.txt"), "-o", str(folder / "out")]
    (folder / "c.json").write_text(json.dumps({"name": "cat", "questions": ["who is the cat", "the cat sat on"]}))
    ask = ["answers", v, u, "--target", str(folder / "p.txt"), "-o", str(folder / "out")]
    prepare = ["prepare", str(folder / "c.json"), "--model", v, "-o", str(folder / "out")]
    return {
        "answers": [*ask, "--n-tokens", "2", "--quiet"],
        "prepare": [*prepare, "--n-tokens", "2", "--quiet"],
        "sweep": [*sweep, "--engine", "plain", "--window", "1", "--n-tokens", "2", "--quiet"],
        "sweep, answering": [*sweep, "--engine", "wavefront", "--n-tokens", "2", "--quiet"],
        "unlearn": [*train, "--set", "steps=30", "--quiet"],
    }


@pytest.mark.parametrize(
    "name",
    [
        "sweep",
        "unlearn",
        *(pytest.param(n, marks=pytest.mark.long) for n in ("sweep, answering", "answers", "prepare")),
    ],
)
def test_a_command_that_is_terminated_keeps_what_it_has(tmp_path, name):
    for side, model in zip("vu", pair("llama"), strict=True):
        model.save_pretrained(tmp_path / side)
        tiny_tokenizer().save_pretrained(tmp_path / side)
    (tmp_path / "p.txt").write_text("who wrote the book\nthe cat sat on\n")
    mark, out = tmp_path / "stepped", tmp_path / "out"
    script = _SCRIPT.format(root=os.getcwd(), mark=str(mark))
    child = subprocess.Popen([sys.executable, "-c", script, *_commands(tmp_path)[name]], stderr=subprocess.PIPE)
    until = time.monotonic() + 90
    while not mark.exists() and child.poll() is None and time.monotonic() < until:
        time.sleep(0.02)
    child.send_signal(signal.SIGTERM)
    said = child.communicate(timeout=60)[1].decode()
    assert child.returncode == 128 + signal.SIGTERM, said
    assert "Traceback" not in said
    assert not [path for path in out.rglob("*") if ".tmp" in path.name]
    if name == "sweep":
        assert "the same command goes on from there" in said
        assert 0 < (krs.load_result(out / "sweep.krs").part >= 0).mean() < 1
    elif name == "sweep, answering":
        assert "1 of 2 vanilla answers and no restoration yet, is in" in said
        assert "the same command goes on from there" in said
        found = krs.load_result(out / "sweep.krs")
        assert len(found.token_ids) == len(found.provenance["waiting"]["token_ids"]) == 1
    elif name == "answers":
        assert "of 2 vanilla" in said
        assert len(krs.metrics.load_answers(out / "answers.part.json").token_ids["vanilla"]) == 1
        assert not (out / "answers.json").exists()
    elif name == "prepare":
        assert "answers so far are in" in said
        assert json.loads((out / "prepare.part.json").read_text())["token_ids"]["forget"]
        assert not (out / "forget.jsonl").exists()
    else:
        assert "a checkpoint was written; the same call goes on from there" in said
        (state,) = out.glob("checkpoints/checkpoint-*/trainer_state.json")
        assert 0 < json.loads(state.read_text())["global_step"] < 30
