"""Models by hub id, from a hub on this machine."""

import copy
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import krs
from krs import KrsError
from krs.models.tokenizers import as_tokenizer
from krs.reach import is_reachable
from tests.models.hub import hub
from tests.tiny import build, pair, same_state, state
from tests.unlearn.tiny_tokenizer import tiny_tokenizer

_ONLINE = """
import sys, torch, krs
ids = torch.arange(2, 9)[None]
unlearned, none = krs.load("me/unlearned")
vanilla, tokenizer = krs.load("me/vanilla")
adapted, bases = krs.load("me/adapter", revision="of-the-adapter", token="hf_callers_own")
local, _ = krs.load(sys.argv[1])
torch.save({
    "types": [type(m).__name__ for m in (none, tokenizer, adapted, bases)],
    "logits": [m(ids).logits.detach() for m in (unlearned, vanilla, adapted, local)],
}, sys.argv[2])
"""


def test_models_of_a_hub(tmp_path):
    """A repository without tokenizer, one with it, an adapter over a base there, and a local adapter over that base."""
    from peft import LoraConfig, get_peft_model

    ids = torch.arange(2, 9)[None]
    vanilla, unlearned = pair("llama", tie_word_embeddings=False)
    base = build("llama", seed=3, tie_word_embeddings=False)
    with hub(tmp_path / "hub") as served:
        unlearned.save_pretrained(served.root / "me/unlearned")
        for name, model in (("vanilla", vanilla), ("base", base)):
            model.save_pretrained(served.root / "me" / name)
            tiny_tokenizer().save_pretrained(served.root / "me" / name)
        wanted = [unlearned(ids).logits, vanilla(ids).logits]
        for folder, revision in ((served.root / "me/adapter", "of-the-base"), (tmp_path / "adapter", None)):
            config = LoraConfig(r=2, target_modules=["down_proj"], init_lora_weights=False, revision=revision)
            adapted = get_peft_model(copy.deepcopy(base), config)
            adapted.peft_config["default"].base_model_name_or_path = "me/base"
            adapted.save_pretrained(folder, save_embedding_layers=False)  # else it would look for the base on the hub
            wanted.append(adapted.eval()(ids).logits)
        there = {"HF_ENDPOINT": served.address, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
        env = os.environ | there | {"PYTHONPATH": str(Path(krs.__file__).parents[1])}
        command = [sys.executable, "-c", _ONLINE, tmp_path / "adapter", tmp_path / "found.pt"]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = torch.load(tmp_path / "found.pt")
    assert found["types"][0] == "NoneType"
    assert found["types"][2] == "PeftModelForCausalLM"
    assert found["types"][1] == found["types"][3] != "NoneType"
    for logits, expected in zip(found["logits"], wanted, strict=True):  # another process may have other threads
        torch.testing.assert_close(logits, expected)
    with_token = {asked[:2] for asked in served.asked if asked[2] == "Bearer hf_callers_own"}
    assert with_token == {("me/adapter", "of-the-adapter"), ("me/base", "of-the-base")}
    assert {revision for name, revision, _ in served.asked if name == "me/adapter"} == {"of-the-adapter"}


def test_an_adapter_whose_base_cannot_be_had_names_both(tmp_path):
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(build("llama"), LoraConfig(r=2, target_modules=["down_proj"]))
    adapted.peft_config["default"].base_model_name_or_path = str(tmp_path / "gone")
    adapted.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    with pytest.raises(KrsError, match=r"adapter' is an adapter, and its base cannot be loaded: no such path.*gone"):
        krs.load(tmp_path / "adapter")


def test_without_a_network_a_mistyped_id_fails_at_once(monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}/{revision}/{filename}")
    assert not is_reachable()
    (tmp_path / "models" / "unlearned").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    tried = []
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", tried.append)  # between two attempts
    with pytest.raises(KrsError) as caught:
        krs.load("models/unlerned")
    assert tried == []
    assert str(caught.value).startswith(
        "'models/unlerned' is neither a local path (there is a folder 'models', but no 'unlerned' in it; did you mean "
        "'models/unlearned'?) nor a model that the hub gives here: the hub cannot be reached (or is switched off), and "
        "its cache here does not have it whole\n"
    )


def test_a_name_that_cannot_be_resolved_is_no_network(monkeypatch):
    from huggingface_hub import constants

    def fails(*_, **__):
        raise socket.gaierror("no such host")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://hub.invalid")
    monkeypatch.setattr(socket, "getaddrinfo", fails)
    assert not is_reachable()


def test_a_tokenizer_by_name(tmp_path):
    vanilla, unlearned = pair("llama")
    for name, model in (("t", vanilla), ("none", vanilla), ("u", unlearned)):
        model.save_pretrained(tmp_path / name)
    tiny_tokenizer().save_pretrained(tmp_path / "t")
    assert as_tokenizer(str(tmp_path / "t")).get_vocab() == tiny_tokenizer().get_vocab()
    assert as_tokenizer(None) is None
    with pytest.raises(KrsError, match=r"none' has no tokenizer beside it: give a directory or hub id that has one"):
        as_tokenizer(tmp_path / "none")
    names = (str(tmp_path / "none"), str(tmp_path / "u"))
    options = {"windows": krs.windows.of([[1]]), "n_tokens": 2, "progress": False}
    with pytest.raises(KrsError, match="no tokenizer was found"):
        krs.sweep(*names, ["the cat sat"], **options)
    assert krs.sweep(*names, ["the cat sat"], tokenizer=tmp_path / "t", **options).krs.notna().all(axis=None)
    found = krs.metrics.answers(*names, ["the cat sat"], tokenizer=tmp_path / "t", n_tokens=2, progress=False)
    assert len(found.frame) == 1
    assert krs.generate(*names, ["the cat"], tokenizer=tmp_path / "t", n_tokens=2, progress=False).texts is not None


class _Wicked:
    def __reduce__(self):
        return exec, ("raise SystemExit('code in a checkpoint was run')",)


def test_a_pickled_checkpoint_is_read_and_its_code_is_not_run(tmp_path):
    model = build("llama", tie_word_embeddings=False)
    model.config.save_pretrained(tmp_path / "m")
    torch.save(model.state_dict(), tmp_path / "m" / "pytorch_model.bin")
    assert same_state(krs.load(tmp_path / "m")[0], state(model))
    torch.save(model.state_dict() | {"x": _Wicked()}, tmp_path / "m" / "pytorch_model.bin")
    with pytest.raises(KrsError, match="a pickle that holds more than tensors, and reading it would run code"):
        krs.load(tmp_path / "m")
