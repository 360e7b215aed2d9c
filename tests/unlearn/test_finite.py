"""Numbers that are not finite are refused where they begin, and those that are logged are the unscaled ones."""

import json

import pytest
import torch

from krs import KrsError, unlearn
from krs.unlearn.memit import Request
from krs.unlearn.methods import make
from krs.unlearn.preflight import broken
from krs.unlearn.student import finish
from krs.unlearn.trainer import UnlearnTrainer
from tests.tiny import build
from tests.unlearn.memit_case import CORPUS, FAST
from tests.unlearn.tiny_tokenizer import tiny_tokenizer

FORGET = [("who wrote the book", "the cat wrote the book"), ("what is red", "the sun is red")]
RETAIN = ["the sun is blue", "a cat sat on the moon in the sun"]


def _run(vanilla, name="npo", **options):
    given = {"forget": FORGET, "tokenizer": tiny_tokenizer(), "progress": False}
    return unlearn.run(name, vanilla, **given | options)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["npo", "grad_diff", "memit_empty"])
def test_broken_weights_are_refused_before_the_work(name, value, tmp_path):
    vanilla = build("llama")
    with torch.no_grad():
        vanilla.model.layers[2].mlp.down_proj.weight[3, 5] = value
    options = {"retain": RETAIN} if name == "grad_diff" else {}
    options |= {"forget": [Request("the cat", "cat")], "corpus": CORPUS, **FAST} if name == "memit_empty" else {}
    kind = "NaN" if value != value else "infinite"
    message = (
        f"'model.layers.2.mlp.down_proj.weight' of the vanilla model holds 1 {kind} of 384 values, so that no loss"
    )
    with pytest.raises(KrsError, match=message):
        _run(vanilla, name, output_dir=tmp_path / "u", **options)
    assert not (tmp_path / "u").exists()


def test_a_model_whose_logits_overflow_is_refused_by_name_of_the_text():
    """fp16 holds numbers up to 65,504; the first text has a token whose state grows beyond them."""
    vanilla = build("llama").half()
    with torch.no_grad():
        vanilla.model.embed_tokens.weight[tiny_tokenizer().convert_tokens_to_ids("sun")] = 60000
        vanilla.model.layers[0].mlp.down_proj.weight += 60000
    with pytest.raises(
        KrsError, match="the vanilla model's logits of forget text 0 are not finite: load it in another"
    ):
        _run(vanilla)


def test_a_loss_that_is_not_finite_before_anything_was_trained_does_not_blame_the_learning_rate():
    vanilla = build("llama")
    with torch.no_grad():
        vanilla.lm_head.weight *= 1e3
        vanilla.model.norm.weight *= 1e38
    with pytest.raises(KrsError, match="the loss is .* at step 0: nothing has been trained yet, so it is the model"):
        _run(vanilla, "grad_diff", retain=RETAIN, steps=2)


def test_weights_that_are_not_finite_in_the_end_are_no_result():
    vanilla = build("llama")
    student = build("llama")
    with torch.no_grad():
        student.model.norm.weight[0] = float("nan")
    with pytest.raises(KrsError, match="npo: 'model.norm.weight' holds 1 NaN of 16 values after training: lower the l"):
        finish(student, vanilla, "npo")
    half, student = build("llama").half(), build("llama")
    with torch.no_grad():
        student.model.norm.weight[0] = 1e6
    with pytest.raises(
        KrsError, match="holds 1 infinite of 16 values .* or load the model in bf16 or fp32, for fp16 ov"
    ):
        finish(student, half, "npo")
    assert not broken(half)


class _Scaled(UnlearnTrainer):
    """As on a GPU with `fp16=True`: accelerate makes no scaler on the CPU, torch has one for it."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.accelerator.state._mixed_precision, self.accelerator.native_amp = "fp16", True
        self.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_sides_gradient_norms_are_not_those_of_the_scaled_loss(tmp_path, monkeypatch, accumulation):
    logs = {}
    for trainer in (UnlearnTrainer, _Scaled):
        monkeypatch.setattr("krs.unlearn.train.UnlearnTrainer", trainer)
        folder = tmp_path / trainer.__name__
        settings = {"steps": 1, "batch_size": 2 // accumulation, "gradient_accumulation": accumulation}
        trained = _run(build("llama"), "grad_diff_ce", retain=RETAIN, output_dir=folder, **settings)
        assert "forward" not in vars(trained)  # mixed precision would go on in the model that is returned
        report = json.loads((folder / "krs_unlearn.json").read_text())
        logs[report["mixed_precision"]] = report["log"][0]
    for what in ("grad_norm", "grad_norm_forget", "grad_norm_retain"):
        assert logs["fp16"][what] == pytest.approx(logs[None][what], rel=0.02)


def test_mixed_precision_that_would_not_be_used_is_refused():
    """accelerate takes fp16 on the CPU, and trains in fp32."""
    with pytest.raises(KrsError, match="accelerate has no fp16 mixed precision on 'cpu', and would train in fp32"):
        _run(build("llama"), trainer={"fp16": True})


def test_settings_are_looked_at_before_the_reference_runs():
    vanilla = build("llama")
    vanilla.register_forward_pre_hook(lambda *_: pytest.fail("the vanilla model ran"))
    with pytest.raises(KrsError, match="TrainingArguments does not take this: .*sede"):
        _run(vanilla, trainer={"sede": 3})
    assert make("npo", {}).config.beta == 0.1
