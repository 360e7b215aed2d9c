"""A model kept as its difference to another one is the same to the bit."""

import pytest
import torch
from safetensors.torch import load_file

from krs.study import difference
from tests.tiny import build, perturbed


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_file_is_byte_for_byte_the_same(tmp_path, dtype, family):
    vanilla = build(family).to(dtype)
    model = perturbed(vanilla, scale=1e-3)
    names = [n for n, _ in model.named_parameters()]
    model.get_parameter(names[1]).data.copy_(vanilla.get_parameter(names[1]).data)
    model.get_parameter(names[2]).data.view(-1)[:3] = torch.tensor([float("nan"), -0.0, float("inf")], dtype=dtype)
    vanilla.save_pretrained(tmp_path / "v")
    model.save_pretrained(tmp_path / "u", max_shard_size="4KB")
    whole = {p.name: p.read_bytes() for p in (tmp_path / "u").glob("*.safetensors")}
    assert len(whole) > 1
    difference.take(tmp_path / "v", tmp_path / "u")
    for name in whole:
        (tmp_path / "u" / name).unlink()
    assert difference.expand(tmp_path / "v", tmp_path / "u")
    assert {n: (tmp_path / "u" / n).read_bytes() for n in whole} == whole


def test_it_is_smaller_where_little_has_moved(tmp_path):
    vanilla = build("llama", hidden_size=64, intermediate_size=128)
    vanilla.save_pretrained(tmp_path / "v")
    perturbed(vanilla, scale=1e-6).save_pretrained(tmp_path / "u")
    difference.take(tmp_path / "v", tmp_path / "u")
    small, whole = ((tmp_path / "u" / n).stat().st_size for n in (difference.NAME, "model.safetensors"))
    assert small < whole / 2


def test_a_tensor_that_the_vanilla_model_has_not_is_kept_whole(tmp_path):
    build("llama").save_pretrained(tmp_path / "v")
    build("llama", vocab_size=70, seed=3).save_pretrained(tmp_path / "u")
    before = load_file(tmp_path / "u" / "model.safetensors")
    difference.take(tmp_path / "v", tmp_path / "u")
    (tmp_path / "u" / "model.safetensors").unlink()
    assert difference.expand(tmp_path / "v", tmp_path / "u")
    after = load_file(tmp_path / "u" / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before.keys() | after.keys())


def test_a_difference_to_another_model_is_not_applied(tmp_path):
    build("llama").save_pretrained(tmp_path / "v")
    perturbed(build("llama")).save_pretrained(tmp_path / "u")
    build("llama", hidden_size=32).save_pretrained(tmp_path / "w")
    difference.take(tmp_path / "v", tmp_path / "u")
    assert not difference.expand(tmp_path / "w", tmp_path / "u")
