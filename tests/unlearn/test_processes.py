"""Several processes: with whole copies of the model (DDP), and with a model that is divided among them (FSDP)."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

import krs
from krs import KrsError, unlearn
from krs.unlearn.callbacks import in_any_process
from tests.noise import assert_rounds_alike, float64_throughout
from tests.tiny import build
from tests.unlearn.test_options import FORGET, RETAIN
from tests.unlearn.tiny_tokenizer import tiny_tokenizer

SIDES = {"forget": [*FORGET, ("one two", "three")], "retain": [*RETAIN, "the moon is green", "one dog"]}
SETTINGS = {"learning_rate": 1e-2, "steps": 7, "save_steps": 3}
_ENV = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
_LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
_LAUNCH += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]

# accelerate shards on accelerators only. The first lines make it take the CPU for one: everything behind them (torch's
# FSDP2, its collectives over gloo, the divided optimiser, gathering the shards) is what runs on GPUs.
_SCRIPT = """
import os, sys, time
sys.path.insert(0, {root!r})
import torch
torch.set_num_threads(1)
from accelerate.state import DistributedType, PartialState
os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
torch.distributed.init_process_group("gloo")
PartialState._prepare_backend = lambda self, *args, **kwargs: ("gloo", DistributedType.MULTI_GPU)
import krs.unlearn.train as train
from krs import unlearn
from krs.unlearn.trainer import UnlearnTrainer
from tests.noise import assert_rounds_alike, float64_throughout
from tests.tiny import build
from tests.unlearn import test_processes as case
train.OneBar.on_step_end = lambda *args, **kwargs: time.sleep({sleep})
gathered = UnlearnTrainer.gathered
def seen(self, fresh):
    print(f"<{{type(next(self.model_wrapped.parameters())).__name__}}>", flush=True)
    return gathered(self, fresh)
UnlearnTrainer.gathered = seen
unlearn.run("npo_kl", build("llama"), tokenizer=case.tiny_tokenizer(), progress=False, output_dir={out!r},
            trainer={{"fsdp": True}}, batch_size=2, **case.SIDES, **case.SETTINGS)
"""


def _start(out, sleep=0.0):
    script = out.parent / "script.py"
    script.write_text(_SCRIPT.format(root=os.getcwd(), sleep=sleep, out=str(out)))
    pipe = subprocess.PIPE
    return subprocess.Popen([*_LAUNCH, str(script)], stdout=pipe, stderr=subprocess.STDOUT, text=True, env=_ENV)


def _logs(folder):
    return [entry["loss"] for entry in json.loads((folder / "krs_unlearn.json").read_text())["log"]]


def _is_what_one_process_makes(two, settings):
    """With twice the batch: no further apart than one process is from itself with its batches in two or in four."""
    trained = {}
    with float64_throughout():
        exact = _alone(two.parent / "exact", build("llama").double(), settings)
    for parts in (1, 2, 4):
        trained[parts] = _alone(two.parent / f"in {parts}", build("llama"), settings, parts)
    logs, weights = _logs(two), _flat(krs.load(two)[0])
    assert_rounds_alike(logs, exact[0], [log for log, _ in trained.values()])
    assert_rounds_alike(weights, exact[1], [other for _, other in trained.values()])


def _alone(folder, model, settings, parts=1):
    """The losses and the weights of one process, each step in so many parts."""
    options = {"tokenizer": tiny_tokenizer(), "progress": False, "output_dir": folder}
    each = settings | {"batch_size": 4 // parts, "gradient_accumulation": parts}
    unlearned = unlearn.run("npo_kl", model, **options, **SIDES, **each)
    return np.array(_logs(folder)), _flat(unlearned)


def _flat(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_two_processes_train_as_one_does(tmp_path):
    """`accelerate launch -m krs.cli unlearn …`: a copy in each process."""
    build("llama").save_pretrained(tmp_path / "v")
    tiny_tokenizer().save_pretrained(tmp_path / "v")
    for name, texts in SIDES.items():
        rows = [t if isinstance(t, str) else {"prompt": t[0], "answer": t[1]} for t in texts]
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
    command = [*_LAUNCH, "-m", "krs.cli", "unlearn", "npo_kl", "--model", tmp_path / "v", "--quiet"]
    command += ["--forget", tmp_path / "forget.json", "--retain", tmp_path / "retain.json", "-o", tmp_path / "two"]
    command += ["--set", "steps=3", "--set", "learning_rate=1e-2", "--set", "batch_size=2"]
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False, env=_ENV)
    assert done.returncode == 0, done.stderr
    _is_what_one_process_makes(tmp_path / "two", {"learning_rate": 1e-2, "steps": 3})


@pytest.mark.long
def test_a_model_divided_among_processes_is_trained_as_a_whole_one(tmp_path):
    """FSDP, stopped by Ctrl-C (every process after the same step) and started again."""
    two = tmp_path / "two"
    child = _start(two, sleep=0.6)
    until = time.monotonic() + 90
    while not (two / "checkpoints" / "checkpoint-3").exists() and child.poll() is None and time.monotonic() < until:
        time.sleep(0.02)
    child.send_signal(signal.SIGINT)
    said = child.communicate(timeout=60)[0]
    assert child.returncode != 0, said
    assert "a checkpoint was written; the same call goes on from there" in said
    assert not (two / "krs_unlearn.json").exists()
    done = _start(two)
    said = done.communicate(timeout=600)[0]
    assert done.returncode == 0, said
    assert said.count("<DTensor>") == 2, said
    assert not (two / "checkpoints").exists()
    _is_what_one_process_makes(two, SETTINGS)


def test_fsdp_is_refused_where_nothing_would_be_divided(monkeypatch):
    options = {"tokenizer": tiny_tokenizer(), "progress": False, "trainer": {"fsdp": True}}
    with pytest.raises(KrsError, match="start them with accelerate launch"):
        unlearn.run("npo_kl", build("llama"), **options, **SIDES, **SETTINGS)
    options.pop("trainer")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")  # accelerate launch --use_fsdp
    with pytest.raises(KrsError, match="would train whole copies on 'cpu': leave it out, or load the model to a GPU"):
        unlearn.run("npo_kl", build("llama"), **options, **SIDES, **SETTINGS)
    cpu = torch.device("cpu")
    assert in_any_process(True, cpu)
    assert not in_any_process(False, cpu)


_BAD_LOSS = """
import os, sys
sys.path.insert(0, {root!r})
import torch
torch.set_num_threads(1)
from krs import unlearn
from tests.tiny import build
from tests.unlearn import test_processes as case
@unlearn.register("bad")
class Bad(unlearn.Method):
    def loss(self, forget, retain):
        return {{"forget": forget.logits.mean() * (float("nan") if os.environ["RANK"] == "1" else 1.0)}}
unlearn.run("bad", build("llama"), tokenizer=case.tiny_tokenizer(), progress=False, steps=2, batch_size=2,
            forget=case.SIDES["forget"])
"""


@pytest.mark.long
def test_a_loss_that_is_not_finite_in_one_process_ends_all_of_them(tmp_path):
    """Otherwise the others wait for it in the next collective, until something kills them."""
    script = tmp_path / "script.py"
    script.write_text(_BAD_LOSS.format(root=os.getcwd()))
    command = [*_LAUNCH, str(script)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=_ENV, timeout=600)
    assert done.returncode != 0
    assert "bad: the loss is nan at step 0" in done.stderr
    assert "bad: the loss of another process is not finite at step 0" in done.stderr
