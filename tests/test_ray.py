"""Cells, and shards of a sweep, on Ray: the results are those of this process, whatever happens to the workers."""

import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import psutil
import pytest
import torch

import krs
from krs import study
from krs.cluster import Node, Room, _begin, connected
from krs.restore.engines import ENGINES
from tests.noise import assert_same
from tests.study.small import asked, contents, home, manifests, written
from tests.tiny import exact_pair

pytestmark = pytest.mark.filterwarnings("ignore")
EXACT = ("model.safetensors", "krs.csv", "answers.csv", "drift.csv", "forget.jsonl", "target.txt")


@pytest.fixture(scope="module")
def ray():
    """Two workers on this machine, for all tests of this file."""
    ray = pytest.importorskip("ray", reason="ray is not installed (krs[cluster])")
    _begin("local", {"num_cpus": 2, "include_dashboard": False, "log_to_driver": False, "object_store_memory": 2**27})
    yield ray
    ray.shutdown()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return home(tmp_path_factory.mktemp("ray"))


def _same(one, other):
    """Whether two directories hold the same study, artefact by artefact."""
    assert contents(one) == contents(other)
    theirs = manifests(other)
    for at, manifest in manifests(one).items():
        names = [] if manifest is None else list(manifest.artefacts)
        assert names == ([] if theirs[at] is None else list(theirs[at].artefacts))
        for name in names:
            about = manifest.artefacts[name]
            assert not name.endswith(EXACT) or theirs[at].artefacts[name] == about, (at, name)


def _killed(cell, out, told):
    """Kill the worker that trains a cell, once it has written a checkpoint."""
    for _ in range(6000):
        if list(
            (out / "steps" / "unlearn").glob("*/model/checkpoints/checkpoint-[3-9]")
        ):  # two steps has the broken one
            for process in psutil.process_iter(["name", "cmdline"]):
                if f"work {cell}" in " ".join(process.info["cmdline"] or []):
                    process.kill()
                    told.append(process.pid)
                    return
        time.sleep(0.005)


def test_a_cluster_that_is_not_there_is_named():
    """First in this file: the others share a Ray that runs."""
    pytest.importorskip("ray", reason="ray is not installed (krs[cluster])")
    with pytest.raises(krs.KrsError, match="no Ray cluster answers at 'nowhere'"):
        with connected("nowhere"):
            pass


@pytest.mark.long
def test_a_study_is_the_same_on_ray_and_a_failing_cell_stops_no_other(ray, place, tmp_path):
    from tests.study import choosy  # noqa: F401 - a step that workers have to import

    steps = {"prepare": {"n_tokens": 2}, "choosy": {"fails_on": "dog"}, "drift": {}}
    spec = written(place, asked(models=[], methods=[], concepts=["cat.json", "dog.json"], steps=steps), "choosy.yaml")
    whole = study.run(spec, tmp_path / "whole", progress=False)
    found = study.run(spec, tmp_path / "out", runner="ray", progress=False)
    assert [(f.cell, f.step, f.error) for f in found.failed] == [(f.cell, f.step, f.error) for f in whole.failed]
    assert [f.cell for f in found.failed] == ["v--dog--public--published"]
    assert found.written == whole.written
    _same(tmp_path / "out", tmp_path / "whole")
    pids = {p.read_text() for p in (tmp_path / "out" / "steps" / "choosy").glob("*/pid.txt")}
    assert str(os.getpid()) not in pids
    again = study.run(spec, tmp_path / "out", runner="ray", progress=False)
    assert ([f.cell for f in again.failed], again.written) == (["v--dog--public--published"], [])
    assert not list((tmp_path / "out" / "locks").glob("ray-*"))


@pytest.mark.long
def test_a_worker_that_is_killed_costs_no_result(ray, place, tmp_path):
    slow = {"name": "ga", "settings": {"learning_rate": 1e-3, "steps": 30, "batch_size": 2}}
    broken = {"name": "ga", "label": "broken", "settings": {"learning_rate": 1e30, "steps": 2, "max_grad_norm": 1e30}}
    spec = written(place, asked(methods=[slow, broken]))
    whole = study.run(spec, tmp_path / "whole", progress=False)
    pids: list[int] = []
    killer = threading.Thread(target=_killed, args=("v--cat--ga", tmp_path / "out", pids))
    killer.start()
    found = study.run(spec, tmp_path / "out", runner=study.Ray(cpus=1), progress=False)
    killer.join()
    assert len(pids) == 1
    logs = [log.read_text() for log in (tmp_path / "out" / "steps" / "unlearn").glob("*/log.txt")]
    assert any(text.count("unlearn begins") == 2 and "is done" in text for text in logs), logs
    assert [(f.cell, f.step, f.error) for f in found.failed] == [(f.cell, f.step, f.error) for f in whole.failed]
    assert [f.cell for f in found.failed] == ["v--cat--broken--default--s0"]
    assert found.written == whole.written
    done = {at: result for at, result in contents(tmp_path / "whole").items() if "broken" not in at[0]}
    assert all(done.values())
    _same(tmp_path / "out", tmp_path / "whole")


@pytest.mark.long
@pytest.mark.parametrize(("way", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_stops_all_of_it_and_the_same_command_goes_on(ray, place, tmp_path, way, status):
    slow = {"name": "ga", "settings": {"learning_rate": 1e-3, "steps": 60, "batch_size": 2}}
    spec = written(place, asked(methods=[slow], pairs=[]), "stopped.yaml")
    command = [sys.executable, "-m", "krs", "study", str(spec), "-o", str(tmp_path / "out"), "--runner", "ray"]
    environment = os.environ | {"RAY_ADDRESS": "local", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen([*command, "--cpus", "1"], stderr=subprocess.PIPE, text=True, env=environment) as process:
        while not list((tmp_path / "out").glob("steps/unlearn/*/model/checkpoints/checkpoint-*")):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.01)
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(way)
        _, said = process.communicate(timeout=120)
    assert (process.returncode, "the same command goes on from there" in said) == (status, True), said
    assert not psutil.wait_procs(children, timeout=30)[1]
    (log,) = (tmp_path / "out").glob("steps/unlearn/*/log.txt")
    assert "unlearn stopped: KeyboardInterrupt: stopped after step" in log.read_text()
    study.run(spec, tmp_path / "out", runner=study.Ray(cpus=1), progress=False)
    study.run(spec, tmp_path / "whole", progress=False)
    _same(tmp_path / "out", tmp_path / "whole")


def test_a_step_of_ones_own_has_to_be_where_workers_find_it(place, tmp_path, monkeypatch):
    pytest.importorskip("ray", reason="ray is not installed (krs[cluster])")
    from krs.study import step as steps

    steps.steps()  # krs's own register themselves now, and not in the copy alone
    monkeypatch.setattr(steps, "REGISTRY", steps.REGISTRY.copy())

    class Mine(study.Step):
        def inputs(self, cell, spec, options):
            return {}

        def run(self, work):
            return ""

    Mine.__module__ = "__main__"
    study.register("mine")(Mine)
    spec = asked(models=[], methods=[], steps={"mine": {}})
    with pytest.raises(
        krs.KrsError, match="the step 'mine' stands in the script that is run, where no worker finds it"
    ):
        study.run(written(place, spec, "mine.yaml"), tmp_path / "out", runner="ray", progress=False)


def test_without_ray_the_extra_is_named_before_any_work(place, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    spec = written(place, asked(), "without.yaml")
    with pytest.raises(
        krs.KrsError, match="the runner 'ray' needs ray, which is not installed: pip install 'krs.cluster"
    ):
        study.run(spec, tmp_path / "out", runner="ray", progress=False)
    assert not (tmp_path / "out").exists()


def test_room_follows_from_the_nodes():
    big, small, plain = Node(64, 8, 800 * 10**9), Node(16, 1, 100 * 10**9), Node(32, 0, 50 * 10**9)
    share = Room().share([plain, big, small], 20 * 10**9)
    assert (share.cpus, share.gpus, share.memory) == (8, 1.0, 20 * 10**9)  # a node without a GPU gets none of it
    assert Room(gpus=0.25).share([big]).cpus == 2
    assert Room(cpus=3).share([plain], None).memory == 0
    alone = Room(cpus=3).share([plain], 60 * 10**9)
    assert (alone.memory, alone.capped) == (50 * 10**9, True)
    with pytest.raises(krs.KrsError, match="no node has 1 CPU and 2 GPUs"):
        Room(cpus=1, gpus=2).share([small, plain])
    with pytest.raises(krs.KrsError, match="give a whole number, or a fraction of one GPU"):
        Room(gpus=1.5)
    with pytest.raises(krs.KrsError, match="a task needs one at least"):
        Room(cpus=0)


PROMPTS = [[5, 9, 13], [5, 9, 7, 21], [30, 2], [8, 8, 40, 17, 3], [44, 3, 6]]


@pytest.fixture(scope="module")
def exact(tmp_path_factory):
    """A pair in float64, by name."""
    folder = tmp_path_factory.mktemp("pair")
    for name, model in zip("vu", exact_pair("llama"), strict=True):
        model.save_pretrained(folder / name)
    return str(folder / "v"), str(folder / "u")


@pytest.fixture
def shards(ray):
    """The engine with one thread a worker and three shards."""
    engine = krs.restore.register_engine(krs.restore.RayEngine("ray_thirds", cpus=1, shards=3))
    yield engine.name
    ENGINES._known.pop(engine.name)


def gap(logits, reference_logits, target_ids):
    """A measure of one's own."""
    return (logits - reference_logits).abs().amax(-1)


def _numbers(result):
    found = [result.losses.restored, result.losses.baseline, result.losses.power, result.losses.donor]
    return found + [part for m in result.losses.measured.values() for part in (m.restored, m.recipient, m.donor)]


def _sweep(pair, engine, **more):
    options = {"windows": 3, "n_tokens": 4, "measures": ["kl", gap], "progress": False}
    return krs.sweep(*pair, PROMPTS, engine=engine, **options | more)


@pytest.mark.long
@pytest.mark.parametrize("more", [{}, {"positions": [[0, 2], [1], [0, 1], [3], [0]], "direction": "transplant"}])
def test_shards_are_the_whole_to_rounding(exact, shards, more):
    whole, parts = _sweep(exact, "plain", **more), _sweep(exact, shards, **more)
    for mine, theirs in zip(_numbers(parts), _numbers(whole), strict=True):
        scored = whole.losses.mask if mine.ndim == 2 else np.broadcast_to(whole.losses.mask, mine.shape)
        assert_same(mine[scored], theirs[scored])
    (part,) = parts.provenance["parts"]
    assert part["engine"] == shards
    assert sorted(shard["prompts"] for shard in part["shards"]) == [[0, 2], [2, 4], [4, 5]]
    assert {shard["engine"] for shard in part["shards"]} == {"wavefront"}


@pytest.mark.long
def test_shards_that_are_done_are_not_done_again(exact, shards, tmp_path, monkeypatch):
    from krs.restore import checkpoint

    def interrupted(self, n=1):
        raise KeyboardInterrupt

    with monkeypatch.context() as patches:
        patches.setattr(checkpoint.SavingBar, "update", interrupted)
        with pytest.raises(KeyboardInterrupt) as stopped:
            _sweep(exact, shards, checkpoint=tmp_path / "sweep.krs")
    done = stopped.value.partial.losses.computed.all(0)
    assert 0 < done.sum() < len(PROMPTS)
    rest = _sweep(exact, "plain", checkpoint=tmp_path / "sweep.krs")
    first, second = rest.provenance["parts"]
    assert (first["engine"], second["engine"]) == (shards, "plain")
    assert first["prompts"] + second["prompts"] == len(PROMPTS)
    assert_same(rest.krs.to_numpy(), _sweep(exact, "plain").krs.to_numpy())


@pytest.mark.long
def test_models_that_no_name_leads_to_are_refused(exact, shards):
    (vanilla, _), (unlearned, _) = map(krs.load, exact)
    with torch.no_grad():
        unlearned.model.layers[2].mlp.up_proj.weight[0, 0] += 1
    with pytest.raises(
        krs.KrsError, match=r"is not the model of this sweep, which was changed .*\(weights\): pass a dir"
    ):
        _sweep((vanilla, unlearned), shards)
    with pytest.raises(
        krs.KrsError, match="workers load models by name, and this LlamaForCausalLM has none: pass a dir"
    ):
        _sweep(exact_pair("llama"), shards)
    with pytest.raises(krs.KrsError, match="shards=0: there has to be one at least"):
        krs.restore.RayEngine(shards=0)
