"""Models that stay on disk: the same numbers, each weight read about once, and a model that still works afterwards."""

import pytest
import torch

import krs
from krs import KrsError, windows
from tests.noise import assert_same
from tests.tiny import exact_pair

PROMPTS = [[5, 9, 11], [7, 3, 22, 8, 40, 2]]
ANSWERS = [[4, 8, 15], [16, 23, 42]]


@pytest.fixture(params=["llama", "gpt2", "gptj", "gemma2", "lfm2"])
def saved(request, tmp_path):
    v, u = exact_pair(request.param)
    v.save_pretrained(tmp_path / "v")
    u.save_pretrained(tmp_path / "u")
    return tmp_path


@pytest.fixture
def bytes_read(monkeypatch):
    from accelerate.utils.offload import OffloadedWeightsLoader

    real, seen = OffloadedWeightsLoader.__getitem__, []

    def counted(self, key):
        value = real(self, key)
        seen.append(value.nbytes)
        return value

    monkeypatch.setattr(OffloadedWeightsLoader, "__getitem__", counted)
    return seen


def test_a_sweep_from_disk_equals_one_in_memory(saved, bytes_read):
    options = {"answers": ANSWERS, "windows": 3, "progress": False}
    result = krs.sweep(str(saved / "v"), str(saved / "u"), PROMPTS, offload="disk", **options)
    read = sum(bytes_read)
    assert result.provenance["engine"] == "wavefront"
    inside = krs.sweep(krs.load(saved / "v")[0], krs.load(saved / "u")[0], PROMPTS, **options)
    assert_same(result.krs, inside.krs)
    v, u = (krs.load(saved / name)[0] for name in "vu")
    tables = sum(m.weight.nbytes for model in (v, u) for m in model.modules() if isinstance(m, torch.nn.Embedding))
    layers = sum(p.nbytes for m in (v, u) for p in m.parameters()) - tables
    # Each layer once for its identity and once for the pass; tables are most of a model as small as these.
    assert 2 * layers < read < 2 * layers + 5 * tables


def test_an_offloaded_model_still_works_after_the_sweep(saved):
    v, _ = krs.load(saved / "v", offload="disk")
    u, _ = krs.load(saved / "u", offload="disk")
    ids = torch.tensor([[5, 9, 11, 2]])
    before = u(input_ids=ids).logits
    krs.sweep(v, u, PROMPTS, answers=ANSWERS, windows=windows.of([[1, 2]]), progress=False)
    assert torch.equal(u(input_ids=ids).logits, before)
    assert all(p.device.type == "meta" for p in u.parameters())


def test_a_model_that_is_half_in_memory_and_half_on_disk(tmp_path):
    v, u = exact_pair("llama", tie_word_embeddings=False)
    expected = krs.sweep(v, u, PROMPTS, answers=ANSWERS, windows=3, progress=False)
    v.save_pretrained(tmp_path / "v")
    here = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "disk"}
    layers = {f"model.layers.{i}": "cpu" if i < 2 else "disk" for i in range(4)}
    split, _ = krs.load(tmp_path / "v", device_map=here | layers, offload_folder=tmp_path / "o")
    result = krs.sweep(split, u, PROMPTS, answers=ANSWERS, windows=3, progress=False)
    assert result.provenance["engine"] == "wavefront"
    assert_same(result.krs, expected.krs)
    assert split.model.layers[3].mlp.down_proj.weight.device.type == "meta"


def test_ways_to_offload_that_do_not_go_together(saved):
    with pytest.raises(KrsError, match="offload='cpu': give 'disk'"):
        krs.load(saved / "v", offload="cpu")
    with pytest.raises(KrsError, match="two ways to say where weights are"):
        krs.load(saved / "v", offload="disk", device_map="auto")
