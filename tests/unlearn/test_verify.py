"""What `run` returns is what `krs.load(output_dir)` gives, adapters and all; where it is not, `run` says so."""

import json
import warnings

import pytest
import torch

import krs
from krs import KrsError, unlearn
from krs.unlearn.verify import check_saved
from tests.adapters import adapted, merged_by_peft
from tests.tiny import build, same_state, state
from tests.unlearn.tiny_tokenizer import tiny_tokenizer

FORGET = ["the cat sat on the moon", ("who wrote the book", "the cat wrote the book")]
IDS = torch.tensor([[3, 5, 8, 2]])


def _run(model, folder, **options):
    given = {"forget": FORGET, "tokenizer": tiny_tokenizer(), "steps": 2, "batch_size": 2, "learning_rate": 1e-2}
    return unlearn.run("ga", model, output_dir=folder, progress=False, **(given | options))


def _logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


@pytest.mark.parametrize("kind", ["lora", "dora", "ia3"])
@pytest.mark.parametrize("parameters", ["all", "lora"])
def test_an_adapters_model_is_trained_merged_and_loads_as_it_was_returned(kind, parameters, tmp_path):
    vanilla = adapted(build("llama", tie_word_embeddings=False), kind)
    before = state(vanilla)
    trained = _run(vanilla, tmp_path / "u", parameters=parameters)
    assert same_state(vanilla, before)
    again, _ = krs.load(tmp_path / "u")
    assert torch.equal(_logits(again), _logits(trained))
    assert not torch.equal(_logits(trained), _logits(vanilla))
    report = json.loads((tmp_path / "u" / "krs_unlearn.json").read_text())
    assert report["vanilla"]["merged_adapters"] == ["default"]
    assert report["saved"] == {"texts": 2, "tokens": report["saved"]["tokens"], "largest_logit_difference": 0.0}
    krs.sweep(vanilla, trained, [[3, 5, 8]], n_tokens=3, progress=False)


def test_training_begins_at_the_merged_model(tmp_path):
    vanilla = adapted(build("llama", tie_word_embeddings=False), "dora")
    one = _run(vanilla, tmp_path / "a", steps=1)
    other = _run(merged_by_peft(vanilla), tmp_path / "b", steps=1)
    torch.testing.assert_close(_logits(one), _logits(other), rtol=0, atol=1e-4)


def test_an_adapter_directory_given_by_name(tmp_path):
    base = build("llama", tie_word_embeddings=False)
    base.save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    again, _ = krs.load(tmp_path / "base")
    vanilla = adapted(again, "lora")
    vanilla.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    vanilla.save_pretrained(tmp_path / "adapter")
    trained = _run(str(tmp_path / "adapter"), tmp_path / "u")
    loaded, _ = krs.load(tmp_path / "u")
    assert torch.equal(_logits(loaded), _logits(trained))
    assert (_logits(trained) - _logits(vanilla)).abs().max() > 1e-3


def test_an_adapter_that_parts_the_head_from_the_embedding(tmp_path):
    vanilla = build("llama")
    assert vanilla.lm_head.weight is vanilla.model.embed_tokens.weight
    from peft import LoraConfig, get_peft_model

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft's, about the head
        u = get_peft_model(vanilla, LoraConfig(r=2, target_modules=["embed_tokens"], init_lora_weights=False)).eval()
    trained = _run(u, tmp_path / "u")
    loaded, _ = krs.load(tmp_path / "u")
    assert torch.equal(_logits(loaded), _logits(trained))
    assert not trained.config.tie_word_embeddings
    assert vanilla.config.tie_word_embeddings


@pytest.mark.parametrize("precision", ["fp32", "bf16-pure"])
def test_a_bf16_model_comes_back_with_the_buffers_that_it_had(precision, tmp_path):
    """Rotary frequencies are fp32 in a bf16 checkpoint's model; training's casts must not round them."""
    build("llama").bfloat16().save_pretrained(tmp_path / "v")
    vanilla, _ = krs.load(tmp_path / "v")
    assert vanilla.model.rotary_emb.inv_freq.dtype == torch.float32
    trained = _run(vanilla, tmp_path / "u", precision=precision)
    loaded, _ = krs.load(tmp_path / "u")
    assert loaded.dtype == torch.bfloat16
    assert torch.equal(trained.model.rotary_emb.inv_freq, vanilla.model.rotary_emb.inv_freq)
    assert torch.equal(_logits(loaded), _logits(trained))


def test_an_edit_is_checked_too(tmp_path):
    vanilla = adapted(build("llama", tie_word_embeddings=False), "lora")
    edited = unlearn.run(
        "memit_empty",
        vanilla,
        forget=[{"prompt": "who wrote the book", "subject": "book"}],
        corpus=["the cat sat on the moon and the dog ran in the sun"] * 30,
        tokenizer=tiny_tokenizer(),
        output_dir=tmp_path / "u",
        layers=[1],
        steps=2,
        min_tokens=10,
        ridge=1.0,
        target="moon",
        cache=False,
        progress=False,
    )
    loaded, _ = krs.load(tmp_path / "u")
    assert torch.equal(_logits(loaded), _logits(edited))
    report = json.loads((tmp_path / "u" / "krs_unlearn.json").read_text())
    assert report["saved"]["texts"] == 1
    assert report["vanilla"]["merged_adapters"] == ["default"]


def test_a_copy_that_loads_as_another_model_is_no_success(tmp_path):
    vanilla = build("llama")
    vanilla.config.rms_norm_eps = 1.0  # the layers were built with another one
    with pytest.raises(KrsError, match=r"saving .* failed .*does not give back the model .*a logit differs") as failed:
        _run(vanilla, tmp_path / "u")
    assert not torch.equal(_logits(failed.value.partial), _logits(vanilla))
    assert not (tmp_path / "u" / "krs_unlearn.json").exists()


def test_a_single_row_that_is_lost_is_found(tmp_path):
    model = build("llama")
    model.save_pretrained(tmp_path)
    check_saved(model, tmp_path, [(3, 5, 8)])
    with torch.no_grad():
        model.model.embed_tokens.weight[60, 0] += 1
    with pytest.raises(KrsError, match=r"weights differ, such as 'model.embed_tokens.weight'"):
        check_saved(model, tmp_path, [(3, 5, 8)])


def test_what_does_not_fit_twice_is_read_from_the_disk(tmp_path, monkeypatch):
    from krs.unlearn import verify

    monkeypatch.setattr(verify, "budget", lambda *_: 10)
    model = build("llama")
    model.save_pretrained(tmp_path)
    assert check_saved(model, tmp_path, [(3, 5, 8)])["largest_logit_difference"] < 1e-5
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.mul_(1.5)
    with pytest.raises(KrsError, match="a logit differs by"):
        check_saved(model, tmp_path, [(3, 5, 8)])


@pytest.mark.parametrize("parameters", ["mlp", "value_vectors"])
def test_subsets_train_what_they_say(parameters, tmp_path):
    vanilla = build("opt")
    for layer in vanilla.model.decoder.layers:
        layer.extra = torch.nn.Linear(2, 2).eval()
    trained = unlearn.run(
        "ga", vanilla, forget=FORGET, tokenizer=tiny_tokenizer(), steps=1, learning_rate=1e-2, weight_decay=0.1,
        parameters=parameters, progress=False,
    )  # fmt: skip
    moved = {n for n, p in trained.named_parameters() if not torch.equal(p, vanilla.get_parameter(n))}
    wanted = {"mlp": {"fc1.weight", "fc2.weight"}, "value_vectors": {"fc2.weight"}}[parameters]
    assert {n.split(".", 4)[-1] for n in moved} == wanted


def test_experts_are_the_mlp_of_a_mixture_and_have_no_value_vectors():
    vanilla = build("moe")
    given = {"forget": FORGET, "tokenizer": tiny_tokenizer(), "steps": 1, "learning_rate": 1e-2, "progress": False}
    trained = unlearn.run("ga", vanilla, parameters="mlp", **given)
    moved = {n for n, p in trained.named_parameters() if not torch.equal(p, vanilla.get_parameter(n))}
    assert moved
    assert all(".mlp.experts." in n for n in moved)
    with pytest.raises(KrsError, match="has none of them .value_vectors."):
        unlearn.run("ga", vanilla, parameters="value_vectors", **given)
