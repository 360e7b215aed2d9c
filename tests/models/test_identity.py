"""Which model is this? Every byte counts, wherever it is, and what else decides the logits."""

import pytest
import torch
from torch import nn

import krs
from krs import KrsError
from krs.models.identity import _told, differing, file_identity, identity, tensor_digest
from tests.tiny import build, pair


def _saved(model, folder, **options):
    model.save_pretrained(folder, **options)
    return folder


def test_every_parameter_counts():
    model = build("llama-bias", tie_word_embeddings=False, num_hidden_layers=1)
    before = identity(model)
    assert before["kind"] == "loaded"
    assert before["bytes"] == sum(p.nbytes for p in model.parameters())
    for parameter in model.parameters():
        flat = parameter.data.view(-1)
        kept = flat[-1].clone()
        flat[-1] = torch.nextafter(kept, kept + 1)
        assert differing(before, identity(model)) == ["weights"]
        flat[-1] = kept
    assert identity(model) == before


def test_every_value_counts(monkeypatch):
    monkeypatch.setattr("krs.models.identity._SLICE", 64)
    value = torch.randn(7, 11)
    before = tensor_digest(value)
    for i in range(value.numel()):
        kept = value.view(-1)[i].clone()
        value.view(-1)[i] = torch.nextafter(kept, kept + 1)
        assert tensor_digest(value) != before
        value.view(-1)[i] = kept
    assert tensor_digest(value) == before
    monkeypatch.undo()
    assert tensor_digest(value) == before


def test_buffers_names_shapes_and_dtypes_count():
    class Odd(nn.Module):
        def __init__(self, name="a", shape=(2, 3), dtype=torch.float32, scale=1.0):
            super().__init__()
            self.register_buffer(name, torch.zeros(shape, dtype=dtype))
            self.register_buffer("scale", torch.tensor(scale))
            self.packed = nn.Parameter(torch.arange(4, dtype=torch.uint8), requires_grad=False)

    found = [Odd(), Odd("b"), Odd(shape=(3, 2)), Odd(dtype=torch.int32), Odd(scale=2.0), Odd()]
    found[-1].packed.data[3] = 9
    assert len({identity(m)["weights"] for m in found}) == 6
    assert identity(Odd()) == identity(found[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_each_dtype_has_its_bytes_and_a_view_those_it_shows(dtype):
    model = build("gpt2").to(dtype)
    before = identity(model)
    weight = model.transformer.h[1].mlp.c_proj.weight
    weight.data = weight.data.t().contiguous().t()
    assert identity(model) == before
    weight.data[3, 2] *= -1
    assert differing(before, identity(model)) == ["weights"]


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
def test_quantised_tensors_are_looked_at_value_by_value():
    values = torch.linspace(-1, 1, 2000)
    packed = torch.quantize_per_tensor(values, 0.01, 0, torch.qint8)
    values[1000] += 0.1
    other = torch.quantize_per_tensor(values, 0.01, 0, torch.qint8)
    wider = torch.quantize_per_tensor(values, 0.02, 0, torch.qint8)
    digests = [_told({"packed": (value, None)}) for value in (packed, other, wider)]
    assert digests[0] == _told({"packed": (packed.clone(), None)})
    assert digests[0] != digests[1] != digests[2]
    assert _told(object()) != _told(object())


@pytest.mark.parametrize("name", ["llama", "gpt2", "falcon", "bloom", "mpt", "gemma2", "phi"])
def test_files_the_loaded_and_the_offloaded_model_agree(name, tmp_path):
    model = build(name)
    folder = _saved(model, tmp_path / "m", max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    found = identity(model)
    assert differing(found, file_identity(folder)) == []
    assert differing(found, identity(krs.load(folder)[0])) == []
    assert differing(found, identity(krs.load(folder, offload="disk")[0])) == []
    assert file_identity(folder)["kind"] == "files"


def test_a_conversion_on_loading_is_another_model_and_the_kinds_are_named(tmp_path):
    folder = _saved(build("llama"), tmp_path / "m")
    half, off = (krs.load(folder, dtype=torch.bfloat16, **more)[0] for more in ({}, {"offload": "disk"}))
    assert differing(identity(half), identity(off)) == []
    assert differing(file_identity(folder), identity(half)) == [
        "weights (one is of files weights, the other of loaded)"
    ]


def test_two_offloaded_models_are_told_apart(tmp_path):
    v, u = pair("llama")
    u.load_state_dict(v.state_dict())
    u.model.layers[2].mlp.down_proj.weight.data[:, 7] += 1e-3
    off = [krs.load(_saved(m, tmp_path / n), offload="disk")[0] for n, m in (("v", v), ("u", u))]
    assert all(p.device.type == "meta" for m in off for p in m.parameters())
    assert differing(*map(identity, off)) == ["weights"]


def test_the_configuration_counts_where_it_changes_numbers():
    before = identity(build("llama"))
    model = build("llama")
    model.config.use_cache = False
    model.config._name_or_path = "elsewhere"
    assert identity(model) == before
    model.config.rms_norm_eps = 1e-5
    assert differing(before, identity(model)) == ["config.rms_norm_eps"]


def test_what_adapters_do_counts():
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, target_modules=["down_proj"], init_lora_weights=False)
    torch.manual_seed(0)
    model = get_peft_model(build("llama"), config).eval()
    before = identity(model)
    layer = model.base_model.model.model.layers[1].mlp.down_proj
    layer.scaling["default"] *= 2
    assert differing(before, identity(model)) == ["adapters"]
    layer.scaling["default"] /= 2
    with model.disable_adapter():
        assert differing(before, identity(model)) == ["adapters"]
    layer.lora_B["default"].weight.data[0, 1] += 1e-4
    assert differing(before, identity(model)) == ["weights"]


def test_directories_that_are_no_model_by_themselves(tmp_path):
    with pytest.raises(KrsError, match="holds no config.json with safetensors beside it: load the model"):
        file_identity(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(KrsError, match="holds an adapter, which is no model by itself: load it"):
        file_identity(tmp_path)
    with pytest.raises(KrsError, match="are not in memory, and accelerate does not say where they are"):
        identity(build("llama").to("meta"))
