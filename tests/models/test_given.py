"""Devices, dtypes and memory of models that are given by name."""

import json
import re
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import krs
from krs import KrsError
from krs.cli import app
from krs.models import given
from krs.models.checkpoints import weight_bytes
from krs.models.devices import has_float64, pick_device, pick_dtype, summable
from krs.models.load import _offloading
from krs.models.memory import host_memory
from krs.restore.estimate import estimate
from tests.pretend import accelerator
from tests.tiny import build, pair
from tests.unlearn.tiny_tokenizer import tiny_tokenizer


@pytest.fixture
def saved(tmp_path):
    for name, model in zip("vu", pair("llama", tie_word_embeddings=False), strict=True):
        model.save_pretrained(tmp_path / name)
        tiny_tokenizer().save_pretrained(tmp_path / name)
    return str(tmp_path / "v"), str(tmp_path / "u")


def test_auto_is_the_gpu_where_there_is_one(monkeypatch):
    assert pick_device("auto") == pick_device(None) == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device("auto") == torch.device("cuda", 0)
    assert pick_device(None) == torch.device("cpu")
    monkeypatch.setenv("LOCAL_RANK", "3")  # of several processes each has its own
    assert pick_device("auto") == torch.device("cuda", 3)


def test_devices_that_are_not_there_and_names_that_are_none():
    with pytest.raises(KrsError, match=r"device='cuda:1' is not there \(torch sees cpu\): leave it out, or install a"):
        pick_device("cuda:1")
    with pytest.raises(KrsError, match="device='gpu': give 'auto', 'cpu', 'cuda', 'cuda:1', 'xpu' or 'mps'"):
        pick_device("gpu")
    with pytest.raises(KrsError, match="dtype='bf16': give a torch dtype such as float64, float32, bfloat16"):
        pick_dtype("bf16")
    assert pick_dtype("bfloat16") is torch.bfloat16
    with accelerator():
        assert pick_device("pretend:1") == torch.device("pretend:1")
        with pytest.raises(KrsError, match="device='pretend:2' is not there"):
            pick_device("pretend:2")


def test_sums_are_made_on_the_host_where_a_device_has_no_float64():
    for float64 in (True, False):
        with accelerator(float64):
            there = torch.ones(2, device="pretend:0")
            assert has_float64(there.device) is float64
            assert summable(there).device.type == ("pretend" if float64 else "cpu")


@pytest.mark.filterwarnings("ignore:.*answers are empty")  # random weights say what they like
def test_every_call_with_names_takes_a_device_and_a_dtype(saved, tmp_path):
    options = {"device": "cpu", "dtype": "bfloat16"}
    sweep = krs.sweep(*saved, ["the cat"], windows=krs.windows.of([[1]]), n_tokens=2, progress=False, **options)
    assert sweep.provenance["vanilla"]["dtype"] == sweep.provenance["unlearned"]["dtype"] == "bfloat16"
    answers = krs.metrics.answers(*saved, ["the cat"], n_tokens=2, progress=False, **options)
    assert answers.provenance["unlearned"]["dtype"] == "bfloat16"
    assert len(krs.generate(*saved, ["the cat"], n_tokens=2, progress=False, **options).texts) == 1
    assert len(krs.metrics.drift(*saved, **options).frame)
    wrong = {"device": "cuda:7"}
    calls = [
        lambda: krs.sweep(*saved, ["the cat"], **wrong),
        lambda: krs.metrics.answers(*saved, ["the cat"], **wrong),
        lambda: krs.generate(*saved, ["the cat"], **wrong),
        lambda: krs.metrics.drift(*saved, **wrong),
        lambda: krs.load(saved[0], **wrong),
    ]
    for call in calls:
        with pytest.raises(KrsError, match="device='cuda:7' is not there"):
            call()


def test_options_of_loading_are_for_names():
    models = pair("llama")
    for option in ({"device": "cpu"}, {"dtype": "bfloat16"}, {"device_map": "auto"}):
        with pytest.raises(KrsError, match=rf"{next(iter(option))}= is for models given by name; these are loaded"):
            krs.metrics.drift(*models, **option)
    with pytest.raises(KrsError, match="device='cpu' and device_map= are two ways to say where models go: give one"):
        krs.metrics.drift("a", "b", device="cpu", device_map="auto")
    with pytest.raises(KrsError, match="offload='disk' computes on the CPU, so device='cuda' would be ignored"):
        _offloading("disk", {}, "cuda")


@pytest.mark.parametrize("shards", [False, True])
def test_sizes_come_from_the_headers(tmp_path, shards):
    model = build("llama", tie_word_embeddings=False)
    model.save_pretrained(tmp_path, **({"max_shard_size": "10KB"} if shards else {}))
    numbers = sum(p.numel() for p in model.parameters())
    assert (tmp_path / "model.safetensors.index.json").exists() is shards
    assert weight_bytes(str(tmp_path), "auto", {}) == 4 * numbers
    assert weight_bytes(str(tmp_path), torch.bfloat16, {}) == 2 * numbers
    assert weight_bytes(str(tmp_path / "none"), "auto", {"local_files_only": True}) is None


def test_sizes_of_pickles_and_adapters(tmp_path):
    from peft import LoraConfig, get_peft_model

    model = build("llama", tie_word_embeddings=False)
    numbers = sum(p.numel() for p in model.parameters())
    model.config.dtype = torch.float32
    model.config.save_pretrained(tmp_path / "m")
    torch.save(model.state_dict(), tmp_path / "m" / "pytorch_model.bin")
    assert 1 <= weight_bytes(str(tmp_path / "m"), torch.bfloat16, {}) / (2 * numbers) < 1.5  # names stand in it too
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["down_proj"]))
    adapted.peft_config["default"].base_model_name_or_path = str(tmp_path / "m")
    adapted.save_pretrained(tmp_path / "a", save_embedding_layers=False)
    own = (tmp_path / "a" / "adapter_model.safetensors").stat().st_size
    whole = weight_bytes(str(tmp_path / "a"), "auto", {})
    assert whole == weight_bytes(str(tmp_path / "m"), "auto", {}) + own


def test_a_pair_that_does_not_fit_is_refused_with_what_would(saved, monkeypatch):
    needed = 2 * weight_bytes(saved[0], "auto", {})
    monkeypatch.setattr(given, "free_memory", lambda _: needed - 1)
    monkeypatch.setattr(given, "load", lambda *_, **__: pytest.fail("it was loaded"))
    says = (
        rf"the weights of both models together take {needed / 1e9:.3g} GB, and {(needed - 1) / 1e9:.3g} GB are free "
        rf"on cpu: load them with dtype='bfloat16' \({needed / 2e9:.3g} GB\); or leave the weights on disk \(offload="
    )
    calls = [lambda: krs.sweep(*saved, ["the cat"]), lambda: krs.metrics.drift(*saved)]
    calls += [lambda: krs.metrics.answers(*saved, ["the cat"]), lambda: krs.generate(*saved, ["the cat"])]
    for call in calls:
        with pytest.raises(KrsError, match=says):
            call()
    monkeypatch.setattr(given, "free_memory", lambda _: needed // 4)
    with pytest.raises(KrsError, match=r"free on cpu: leave the weights on disk \(offload='disk', with answers=\)$"):
        krs.metrics.drift(*saved)


def test_training_that_does_not_fit_is_refused_with_what_would(saved, monkeypatch):
    from krs.unlearn import preflight, run

    size = weight_bytes(saved[0], "auto", {})  # fp32
    monkeypatch.setitem(run.__globals__, "load", lambda *_, **__: pytest.fail("it was loaded"))
    train = {"forget": ["the cat sat"], "device": "cpu", "progress": False}
    for free, says in [
        (size - 1, r"the model's weights take .* free on cpu: load them with dtype='bfloat16'"),
        (5 * size - 1, rf"npo takes at least {5 * size / 1e9:.3g} GB: .* cpu: parameters='lora' \(.*\), or precision="),
        (2 * size, r"free on cpu: parameters='lora' \([^)]*\)$"),
    ]:
        monkeypatch.setattr(given, "free_memory", lambda _, free=free: free)
        monkeypatch.setattr(preflight, "free_memory", lambda _, free=free: free)
        with pytest.raises(KrsError, match=says):
            krs.unlearn.run("npo", saved[0], **train)
    narrow = {"dtype": torch.bfloat16, "retain": ["the dog ran"]}  # whose reference runs in fp32, beside it
    with pytest.raises(KrsError, match=rf"npo_kl takes at least {5.5 * size / 1e9:.3g} GB"):
        krs.unlearn.run("npo_kl", saved[0], **train, **narrow)
    monkeypatch.setattr(preflight, "free_memory", lambda _: 2 * size - 1)
    with pytest.raises(KrsError, match="memit_empty takes at least .* free on cpu: take a smaller model or a larger"):
        krs.unlearn.run("memit_empty", saved[0], **(train | {"forget": [("a", "a b", "c")], "corpus": ["a text"]}))
    with pytest.raises(KrsError, match="device='cuda:7' is not there"):
        krs.unlearn.run("npo", saved[0], **(train | {"device": "cuda:7"}))
    with pytest.raises(KrsError, match="device= is for models given by name: move the model yourself"):
        krs.unlearn.run("npo", build("llama"), **train)


def test_a_model_by_name_is_trained_where_it_is_asked_to_be(saved, tmp_path):
    from typer.testing import CliRunner

    from krs.cli import app

    (tmp_path / "f.txt").write_text("the cat sat on\n")
    run = ["unlearn", "ga", "--model", saved[0], "--forget", str(tmp_path / "f.txt"), "-o", str(tmp_path / "out")]
    run += ["--set", "steps=1", "--quiet", "--device"]
    with accelerator(float64=False):
        refused = CliRunner().invoke(app, [*run, "pretend:2"])
        assert "device='pretend:2' is not there" in str(refused.exception)
        done = CliRunner().invoke(app, [*run, "pretend:0"])
        assert done.exit_code == 0, done.exception
    report = json.loads((tmp_path / "out" / "krs_unlearn.json").read_text())
    assert report["vanilla"]["device"] == "pretend:0"


def test_a_gpu_that_is_too_small_names_the_cpu_and_the_other_gpus(saved, monkeypatch):
    needed = 2 * weight_bytes(saved[0], "auto", {})
    located = {side: (name, True) for side, name in zip(("vanilla", "unlearned"), saved, strict=True)}
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _=None: (needed * 2 // 3, needed))
    ways = (
        r"bfloat16.* compute on the CPU \(device='cpu', .*; or share them out over all GPUs \(device_map='auto'\); or"
    )
    with pytest.raises(KrsError, match=ways):
        given.check_fit(located, "auto", torch.device("cuda"))


def test_free_memory_keeps_to_the_limits_of_control_groups(tmp_path):
    import psutil

    own, root = tmp_path / "own", tmp_path / "cgroup"
    own.write_text("0::/user/job\n")
    (root / "user" / "job").mkdir(parents=True)
    assert host_memory(root, own) <= psutil.virtual_memory().total

    def limited(folder, limit, used, cached, names=("memory.max", "memory.current", "inactive_file")):
        for name, value in zip(names, (limit, used), strict=False):
            (folder / name).write_text(f"{value}\n")
        (folder / "memory.stat").write_text(f"anon 1\n{names[2]} {cached}\n")

    limited(root / "user" / "job", "max", 5_000_000, 0)
    limited(root / "user", 9_000_000, 5_000_000, 1_000_000)  # what it has cached of files is free to be taken back
    assert host_memory(root, own) == 5_000_000
    limited(root / "user" / "job", 6_000_000, 5_000_000, 0)
    assert host_memory(root, own) == 1_000_000
    own.write_text("5:cpu:/x\n4:memory,hugetlb:/docker/abc\n0::/nowhere\n")  # as in a container
    v1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    (root / "memory").mkdir()
    limited(root / "memory", 3_000_000, 1_000_000, 500_000, v1)
    assert host_memory(root, own) == 2_500_000


def test_a_dry_run_says_plan_memory_and_time_and_loads_nothing(saved, tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from krs.cli import app

    (tmp_path / "p.txt").write_text("the cat sat\nwho wrote\n")
    monkeypatch.setattr(given, "load", lambda *_, **__: pytest.fail("it was loaded"))
    run = ["sweep", *saved, "--prompts", str(tmp_path / "p.txt"), "-o", str(tmp_path / "out"), "--dry-run"]
    shown = CliRunner().invoke(app, [*run, "--n-tokens", "4", "--window", "3"])
    assert shown.exit_code == 0, shown.exception
    assert not (tmp_path / "out").exists()
    ids = [tiny_tokenizer()(text)["input_ids"] for text in ("the cat sat", "who wrote")]
    assert "Plan: 4 settings" in shown.output
    assert f"Prompts: 2, with answers {sum(map(len, ids)) + 8} tokens at most" in shown.output
    assert re.search(r"Memory: weights [\d.e-]+ GB, [\d.]+ GB free on cpu\n", shown.output)
    assert re.search(r"Time: about \d+ s \(an estimate from matrix products timed here just now;", shown.output)
    bare = CliRunner().invoke(app, [*run, "--template-arg", "enable_thinking=false"])
    assert "chat_template_kwargs= is for chat messages" in str(bare.exception)
    monkeypatch.setattr(given, "free_memory", lambda _: 10)
    refused = CliRunner().invoke(app, run)
    assert "Plan: 4 settings" in refused.output
    assert "the weights of both models together take" in str(refused.exception)


def test_arguments_of_the_template_count_in_an_estimate(tmp_path):
    from tests.prompts.tokenizers import tokenizer_with

    build("llama").save_pretrained(tmp_path)
    tokenizer = tokenizer_with(template="{% if long %}the cat sat on {% endif %}{{ messages[0].content }}")
    tokenizer.save_pretrained(tmp_path)
    chat = [[{"role": "user", "content": "the cat"}]]
    options = {"windows": krs.windows.of([[3]]), "device": "cpu", "n_tokens": 1}
    found = [
        estimate(tmp_path, tmp_path, chat, chat_template_kwargs=arguments, **options).tokens
        for arguments in (None, {"long": True})
    ]
    assert found[1] == found[0] + 4


@pytest.mark.filterwarnings("ignore:.*answers are empty")  # random weights say what they like
def test_a_longer_vocabulary_from_the_shell(tmp_path):
    from typer.testing import CliRunner

    from krs.cli import app

    v, u = pair("llama")
    u.resize_token_embeddings(u.config.vocab_size + 1)
    for name, model in (("v", v), ("u", u)):
        model.save_pretrained(tmp_path / name)
        tiny_tokenizer().save_pretrained(tmp_path / name)
    (tmp_path / "p.txt").write_text("the cat sat\n")
    both = [str(tmp_path / "v"), str(tmp_path / "u"), "--n-tokens", "2", "--quiet"]
    calls = [
        ["sweep", *both, "--prompts", str(tmp_path / "p.txt"), "--window", "1", "-o", str(tmp_path / "a")],
        ["answers", *both, "--target", str(tmp_path / "p.txt"), "-o", str(tmp_path / "b")],
        ["account", *both, "--prompts", str(tmp_path / "p.txt"), "-o", str(tmp_path / "c")],
        ["speak", *both[:2], "the cat", "--n-tokens", "2"],
        ["drift", *both[:2]],
    ]
    for call in calls:
        refused = CliRunner().invoke(app, call)
        assert "vocabulary='shared' scores the rows that both have" in str(refused.exception)
        done = CliRunner().invoke(app, [*call, "--vocabulary", "shared"])
        assert done.exit_code == 0, done.exception
    dissect = ["dissect", *both[:2], "--target", str(tmp_path / "p.txt"), "-o", str(tmp_path / "d")]
    refused = CliRunner().invoke(app, dissect)
    assert "cut them off first (model.resize_token_embeddings(n)), for here all rows count" in str(refused.exception)


def test_an_estimate_grows_with_what_there_is_to_do(saved):
    one = estimate(*saved, [[2, 3, 4]], windows=krs.windows.of([[3]]), settings=["attn_out"], device="cpu")
    assert len(one.plan) == 1
    assert one.weights == 2 * weight_bytes(saved[0], "auto", {})
    many = estimate(*saved, [[2, 3, 4]] * 400, windows=1, answers=[[5] * 30] * 400, device="cpu")
    assert (many.tokens, one.tokens) == (400 * 33, 33)
    assert many.seconds > one.seconds
    config = Path(saved[0]) / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"model_type": "nothing"}))
    with pytest.raises(KrsError, match="cannot tell what model"):
        estimate(saved[1], saved[0], [[2]])


@pytest.mark.parametrize("command", ["sweep", "answers", "drift", "prepare", "account", "speak", "dissect"])
def test_every_command_that_loads_models_takes_a_device_and_a_dtype(command, saved, tmp_path):
    """Each of them refuses a device that is not there and a dtype that is none, so that neither is passed over."""
    questions = tmp_path / "questions.txt"
    questions.write_text("who wrote the book\n")
    concept = tmp_path / "concept.json"
    concept.write_text(json.dumps({"name": "cat", "questions": ["who is the cat"]}))
    v, u = map(str, saved)
    arguments = {
        "sweep": [v, u, "--prompts", str(questions), "-o", str(tmp_path / "out")],
        "answers": [v, u, "--target", str(questions), "-o", str(tmp_path / "out")],
        "drift": [v, u],
        "prepare": [str(concept), "--model", v, "-o", str(tmp_path / "out")],
        "account": [v, u, "--prompts", str(questions), "-o", str(tmp_path / "out")],
        "speak": [v, u, "who wrote the book"],
        "dissect": [v, u, "--target", str(questions), "-o", str(tmp_path / "out")],
    }[command]
    for option, value, said in (("--device", "cuda:7", "cuda:7"), ("--dtype", "bf17", "bf17")):
        done = CliRunner().invoke(app, [command, *arguments, option, value])
        assert isinstance(done.exception, KrsError), (done.output, done.exception)
        assert said in str(done.exception)
