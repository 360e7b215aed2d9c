"""The trainer's options: what is trained, in which precision, until when, and going on after an interruption."""

import json
import math
import os
import signal
import subprocess
import sys
import time
import warnings

import pytest
import torch

import krs
from krs import KrsError, KrsWarning, unlearn
from krs.hooks import anatomy
from krs.hooks.components import component_of
from krs.unlearn.examples import collate, to_examples
from krs.unlearn.gradients import SideNorms
from krs.unlearn.losses import kl_to_reference, token_logprobs
from krs.unlearn.methods import make
from krs.unlearn.student import make_student
from krs.unlearn.train import train
from tests.noise import assert_rounds_alike, assert_same, float64_throughout
from tests.tiny import build, same_state, state
from tests.unlearn.tiny_tokenizer import tiny_tokenizer

FORGET = [("who wrote the book", "the cat wrote the book"), ("what is red", "the sun is red"), ("who ran", "a dog")]
RETAIN = ["the sun is blue", "a cat sat on the moon in the sun"]
FAST = {"steps": 3, "batch_size": 2, "learning_rate": 1e-2}


def _run(model, name="grad_diff", **options):
    given = {"forget": FORGET, "retain": RETAIN, "tokenizer": tiny_tokenizer(), "progress": False} | FAST | options
    if name not in ("grad_diff", "npo_kl", "grad_diff_ce", "dpo_retain_text", "rmu"):
        given.pop("retain")
    return unlearn.run(name, model, **given)


def _moved(vanilla, unlearned):
    body = anatomy(vanilla)
    before = dict(vanilla.named_parameters())
    moved = {n for n, p in unlearned.named_parameters() if not torch.equal(p, before[n])}
    return {component_of(body, n)[0] for n in moved}


def _weights(model):
    return torch.nn.utils.parameters_to_vector(model.parameters())


@pytest.mark.parametrize("family", ["llama-bias", "gpt2", "opt", "phi3", "olmo_hybrid"])
@pytest.mark.parametrize(
    ("parameters", "components"),
    [
        ("value_vectors", {"value_vectors"}),
        ("attention", {"attention_in", "attention_out"}),
        ("mlp", {"keys", "value_vectors"}),
    ],
)
def test_a_subset_moves_and_nothing_else(family, parameters, components):
    vanilla = build(family)
    unlearned = _run(vanilla, parameters=parameters)
    assert _moved(vanilla, unlearned) == components
    assert all(p.requires_grad for p in unlearned.parameters())


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("name", ["npo_kl", "npo"])
def test_an_adapter_is_merged_and_saved_beside_the_model(tmp_path, family, name):
    vanilla = build(family)
    before = state(vanilla)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # also what the tests let pass elsewhere
        unlearned = _run(vanilla, name, parameters="lora", output_dir=tmp_path / "u")
    assert same_state(vanilla, before)
    assert type(unlearned) is type(vanilla)
    assert _moved(vanilla, unlearned) >= {"keys", "value_vectors", "attention_out"}
    assert not {"embedding", "norms", "unembedding"} & _moved(vanilla, unlearned)
    assert (tmp_path / "u" / "adapter" / "adapter_config.json").exists()
    krs.sweep(vanilla, unlearned, [[3, 5, 8]], n_tokens=2, progress=False)


@float64_throughout()
def test_the_reference_of_an_adapter_is_the_model_without_it():
    """At the first step the KL to the reference is exactly zero, and after it training with either reference agrees."""
    vanilla = build("llama").double()
    logs = {}
    for parameters in ("lora", "all"):
        made = make("npo_kl", {"parameters": parameters} | FAST)
        sides = {s: to_examples(t, tiny_tokenizer(), 50, s) for s, t in (("forget", FORGET), ("retain", RETAIN))}
        _, logs[parameters], _ = train(
            made, vanilla, sides, decoded=str, folder=None, resume=None, options={}, progress=False
        )
    assert logs["lora"][0]["loss_retain"] == logs["all"][0]["loss_retain"] == 0.0
    assert logs["lora"][2]["loss_retain"] > 0
    assert_same(logs["lora"][0]["loss_forget"], logs["all"][0]["loss_forget"])


def test_pure_bf16_keeps_most_weights_and_is_refused_where_it_would_round_first():
    vanilla = build("llama")
    with pytest.raises(KrsError, match="the model's weights are not bf16 numbers"):
        _run(vanilla, precision="bf16-pure")
    vanilla = vanilla.to(torch.bfloat16).float()
    kept = {}
    for precision in ("fp32", "bf16-pure"):
        unlearned = _run(vanilla, precision=precision, learning_rate=1e-5, steps=2)
        assert {p.dtype for p in unlearned.parameters()} == {torch.float32}
        frame = krs.metrics.drift(vanilla, unlearned).by_component()
        kept[precision] = frame.identical["value_vectors"]
    assert kept["fp32"] < 0.05
    assert kept["bf16-pure"] > 0.9


def test_gradient_checkpointing_changes_nothing_and_is_off_afterwards():
    plain, saved = (_run(build("llama"), gradient_checkpointing=on) for on in (False, True))
    with float64_throughout():
        exact = _run(build("llama").double())
    assert_rounds_alike(_weights(saved), _weights(exact), [_weights(plain)])
    assert not any(getattr(m, "gradient_checkpointing", False) for m in saved.modules())
    _run(build("llama"), gradient_checkpointing=True, parameters="lora")


def _norms_by_hand(model, at_once):
    """Norms of the gradients of `grad_diff_ce`: of the forget side, of the retain side, of both."""
    sides = []
    for given, weight in ((FORGET[:2], 1.0), (RETAIN, -1.5)):
        live = sum(len(e.ids) - max(e.n_prompt, 1) for e in to_examples(given, tiny_tokenizer(), 64, "t"))
        model.zero_grad()
        for start in range(0, 2, at_once):
            batch = collate(to_examples(given[start : start + at_once], tiny_tokenizer(), 64, "t"))
            labels = batch.pop("labels")
            (weight * token_logprobs(model(**batch).logits, labels).sum() / live).backward()
        sides.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    return torch.stack([sides[0].norm(), sides[1].norm(), (sides[0] + sides[1]).norm()])


@pytest.mark.parametrize("accumulation", [1, 2])
def test_gradient_norms_are_those_of_each_side_alone(tmp_path, accumulation):
    texts = {"forget": FORGET[:2], "retain": RETAIN}
    options = {"steps": 1, "batch_size": 2 // accumulation, "gradient_accumulation": accumulation}
    _run(build("llama"), "grad_diff_ce", output_dir=tmp_path / "u", **texts, **options)
    logged = json.loads((tmp_path / "u" / "krs_unlearn.json").read_text())["log"][0]
    found = [logged[name] for name in ("grad_norm_forget", "grad_norm_retain", "grad_norm")]
    with float64_throughout():
        exact = _norms_by_hand(build("llama").double(), 2)
    assert_rounds_alike(found, exact, [_norms_by_hand(build("llama"), at_once) for at_once in (1, 2)])


def test_dividing_the_backward_pass_trains_the_same_weights():
    with float64_throughout():
        apart, together = (_run(build("llama").double(), "npo_kl", gradient_norms=on) for on in (True, False))
    for a, b in zip(apart.parameters(), together.parameters(), strict=True):
        assert_same(a, b)


def test_training_stops_at_a_target_and_says_so(tmp_path):
    _run(build("llama"), "ga", steps=30, stop_forget_nll=6.0, output_dir=tmp_path / "nll")
    report = json.loads((tmp_path / "nll" / "krs_unlearn.json").read_text())
    assert report["steps"] == len(report["log"]) < 30
    assert report["stopped"].startswith("forget NLL")
    assert report["targets"][-1]["forget_nll"] >= 6.0
    assert all(seen["forget_nll"] < 6.0 for seen in report["targets"][:-1])
    _run(build("llama"), "ga", steps=30, stop_bleu=20.0, check_every=2, output_dir=tmp_path / "bleu")
    report = json.loads((tmp_path / "bleu" / "krs_unlearn.json").read_text())
    assert report["targets"][-1]["forget_bleu"] <= 20.0
    assert report["targets"][0]["step"] == 2
    with pytest.raises(KrsError, match="no forget text has a prompt: use stop_forget_nll="):
        _run(build("llama"), "ga", forget=["the cat sat"], stop_bleu=20.0)


def _logs(folder):
    return [entry["loss"] for entry in json.loads((folder / "krs_unlearn.json").read_text())["log"]]


_SCRIPT = """
import sys, time
sys.path.insert(0, {root!r})
import torch, transformers, krs
torch.set_num_threads(1)
from krs import unlearn
from tests.unlearn.test_options import FORGET, RETAIN
from tests.unlearn.tiny_tokenizer import tiny_tokenizer
from tests.noise import assert_rounds_alike, assert_same, float64_throughout
from tests.tiny import build
class Slow(transformers.TrainerCallback):
    def on_step_end(self, *args, **kwargs):
        open({out!r} + ".stepped", "a").close()
        time.sleep(0.1)
import krs.unlearn.train as train
train.OneBar.on_step_end = Slow.on_step_end
unlearn.run({name!r}, build("gpt2"), forget=FORGET, retain=RETAIN, tokenizer=tiny_tokenizer(), progress=False,
            output_dir={out!r}, **{settings!r})
"""
_LONG = {"steps": 14, "batch_size": 2, "learning_rate": 3e-3, "save_steps": 3}


@pytest.fixture
def one_thread():
    """Equal to the bit are sums on one thread; several may add up otherwise in two calls that are alike."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_is_killed_goes_on_with_the_losses_of_one_that_is_not(tmp_path, how, one_thread):
    """GPT-2 has dropout, so the state of the random numbers has to come back too."""
    root = os.getcwd()
    settings = _LONG if how == signal.SIGKILL else _LONG | {"save_steps": 0}
    part, whole = tmp_path / "part", tmp_path / "whole"
    script = _SCRIPT.format(root=root, name="grad_diff", out=str(part), settings=settings)
    child = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True)
    place = part / "checkpoints"
    wanted = (lambda: list(place.glob("checkpoint-6"))) if how == signal.SIGKILL else (tmp_path / "part.stepped").exists
    until = time.monotonic() + 240
    while not wanted() and child.poll() is None and time.monotonic() < until:
        time.sleep(0.02)
    time.sleep(0.5)
    child.send_signal(how)
    said = child.communicate(timeout=240)[1]
    assert child.returncode != 0, said
    assert not (part / "krs_unlearn.json").exists()
    assert how == signal.SIGKILL or "a checkpoint was written; the same call goes on from there" in said
    assert list(place.glob("checkpoint-*")), said
    options = {"forget": FORGET, "retain": RETAIN, "tokenizer": tiny_tokenizer(), "progress": False}
    build("gpt2").config.save_pretrained(tmp_path / "without_weights")
    other = settings | {"learning_rate": 1e-3}
    with pytest.raises(KrsError, match="checkpoints of another run; learning_rate .0.003 there, 0.001 here. differ"):
        unlearn.run("grad_diff", tmp_path / "without_weights", output_dir=part, **options, **other)
    nudged = build("gpt2")
    nudged.transformer.h[2].mlp.c_proj.weight.data[5, 3] += 1e-4
    with pytest.raises(KrsError, match="checkpoints of another run; vanilla model differ"):
        unlearn.run("grad_diff", nudged, output_dir=part, **options, **settings)
    resumed = unlearn.run("grad_diff", build("gpt2"), output_dir=part, **options, **settings)
    uninterrupted = unlearn.run("grad_diff", build("gpt2"), output_dir=whole, **options, **settings)
    assert _logs(part) == _logs(whole)
    assert same_state(resumed, state(uninterrupted))
    assert not place.exists()


def test_bad_settings(as_a_user, tmp_path):
    for options, message in [
        ({"precision": "fp8"}, "precision='fp8': choose 'fp32', 'bf16-pure'"),
        ({"parameters": "keys"}, "parameters='keys': choose 'all', 'value_vectors', 'attention', 'mlp', 'lora'"),
        ({"save_steps": -1}, "save_steps=-1"),
        ({"trainer": {"seed": 3}}, "trainer={'seed': …}: krs sets this itself"),
        ({"trainer": {"sede": 3}}, "TrainingArguments does not take this: .*sede"),
        ({"trainer": {"label_smoothing_factor": 0.1}}, "is not taken, for what is minimised is the method's loss"),
        ({"trainer": {"logging_strategy": "epoch"}}, "trainer={'logging_strategy': …}: krs sets this itself"),
        ({"trainer": {"train_sampling_strategy": "group_by_length"}}, "a retain text have no one length"),
        ({"retain_weight": -1.0}, "retain_weight=-1.0: it may not be negative"),
        ({"weight_decay": float("nan")}, "weight_decay=nan: it has to be a finite number"),
        ({"warmup": 3.0}, "warmup=3.0: give a share of the steps, from 0 to 1"),
        ({"name": "npo", "beta": 0.0}, "beta=0.0: it has to be positive"),
        ({"name": "simnpo", "beta": -0.1}, "beta=-0.1: it has to be positive"),
        ({"name": "dpo_idk", "beta": 0.0}, "beta=0.0: it has to be positive"),
        ({"name": "undial", "beta": 0.0}, "beta=0.0: it has to be positive"),
        ({"name": "rmu", "steering": -1.0}, "steering=-1.0: it may not be negative"),
        ({"corpus": ["text"]}, "uses no corpus="),
        ({"dtype": torch.bfloat16}, "dtype= is for models given by name"),
    ]:
        with pytest.raises(KrsError, match=message):
            _run(build("llama"), **options)
    packed = build("llama")
    packed.model.layers[0].mlp.down_proj.weight = torch.nn.Parameter(
        torch.zeros(16, 24, dtype=torch.int8), requires_grad=False
    )
    with pytest.raises(KrsError, match="is packed .quantised. and cannot be trained"):
        _run(packed)
    (tmp_path / "u").mkdir()
    (tmp_path / "u" / "checkpoints").mkdir()
    _run(build("llama"), output_dir=tmp_path / "u")


def test_a_frozen_model_is_trained_as_a_copy_and_stays_frozen():
    vanilla = build("llama").requires_grad_(False)
    unlearned = _run(vanilla)
    assert not any(p.requires_grad for p in (*vanilla.parameters(), *unlearned.parameters()))


def test_texts_longer_than_the_context_are_cut_and_counted(tmp_path):
    long = "the cat sat on the moon and " * 20
    _run(build("llama"), forget=[long, *FORGET], output_dir=tmp_path / "u")
    report = json.loads((tmp_path / "u" / "krs_unlearn.json").read_text())
    assert report["forget"]["cut"] == 1
    assert report["forget"]["sequences"] == 4


def test_side_norms_leave_no_hook_behind():
    layer = torch.nn.Linear(2, 2)
    norms = SideNorms(layer.parameters(), keep=False)
    with norms.of("forget"):
        layer(torch.ones(1, 2)).sum().backward()
    assert norms.norms()["forget"] == pytest.approx(6**0.5)
    norms.close()
    assert not norms.norms()
    assert not any(p._backward_hooks for p in layer.parameters())
    assert make_student(build("llama"), unlearn.Config()).training is False
    assert kl_to_reference(torch.zeros(1, 2, 3), torch.zeros(1, 2, 3), torch.zeros(1, 2, dtype=torch.long)).sum() == 0


def test_a_forget_answer_that_was_cut_off_is_compared_with_as_many_tokens(tmp_path):
    """The model's own answers, cut after five tokens: an unchanged model gives them again, which is a BLEU of 100."""
    vanilla, reader = build("llama"), tiny_tokenizer()
    prompts = ["who wrote the book", "what is red"]
    said = krs.generate(vanilla, None, prompts, tokenizer=reader, n_tokens=5, progress=False)
    forget = [{"prompt": p, "answer": a, "ends": False} for p, a in zip(prompts, said, strict=True)]
    with pytest.warns(KrsWarning, match="stop_bleu=50.0 was not reached"):
        _run(vanilla, forget=forget, stop_bleu=50.0, steps=1, learning_rate=1e-7, output_dir=tmp_path / "u")
    (seen,) = json.loads((tmp_path / "u" / "krs_unlearn.json").read_text())["targets"]
    assert seen["forget_bleu"] == pytest.approx(100)
    long = " ".join(["the cat sat on the moon"] * 7)
    with pytest.raises(KrsError, match="answers of up to 30 tokens, and a forget prompt of 42 tokens leaves no room"):
        _run(build("gpt2"), forget=[(long, "the cat")], stop_bleu=20.0)


class _StoppedError(Exception):
    pass


def test_a_run_goes_on_with_the_options_that_it_was_begun_with_and_reports_them(tmp_path):
    def watch(model, step):
        if step == 2:
            raise _StoppedError
        return {}

    given = {"output_dir": tmp_path / "u", "save_steps": 1}
    with pytest.raises(_StoppedError):
        _run(build("llama"), watch=watch, trainer={"adam_beta1": 0.5}, **given)
    for other, named in [({}, "None here"), ({"adam_beta1": 0.9, "report_to": []}, "0.9 here")]:
        with pytest.raises(KrsError, match=f"checkpoints of another run; adam_beta1 .0.5 there, {named}. differ"):
            _run(build("llama"), trainer=other, **given)
    _run(build("llama"), trainer={"adam_beta1": 0.5, "dataloader_pin_memory": False}, **given)
    report = json.loads((tmp_path / "u" / "krs_unlearn.json").read_text())
    assert (report["trainer"], report["processes"]) == ({"adam_beta1": 0.5}, 1)


@pytest.mark.parametrize("how", [{}, {"precision": "bf16-pure"}, {"parameters": "lora"}], ids=str)
def test_before_the_first_step_a_bf16_model_and_its_copy_say_the_same(tmp_path, how):
    """A reference whose logits are rounded is another model, and a retain term trains towards the rounding."""
    vanilla, at_reference = build("llama").to(torch.bfloat16), {}
    before = state(vanilla)
    vanilla = vanilla.float() if how.get("precision") else vanilla  # bf16 numbers in fp32, of which a bf16 copy is made
    for name in ("npo", "dpo_retain_text", "npo_kl", "grad_diff", "rmu"):
        if name != "rmu" or not how:
            _run(vanilla, name, steps=1, output_dir=tmp_path / name, learning_rate=1e-2, **how)
            at_reference[name] = json.loads((tmp_path / name / "krs_unlearn.json").read_text())["log"][0]
    for name, term in [("npo", "forget"), ("npo_kl", "forget"), ("dpo_retain_text", "preference")]:
        assert at_reference[name][f"loss_{term}"] == pytest.approx(20 * math.log(2), abs=1e-4)
    for name in at_reference.keys() - {"npo", "dpo_retain_text"}:
        assert at_reference[name]["loss_retain"] == 0
        assert at_reference[name]["grad_norm_retain"] < 1e-4 * at_reference[name]["grad_norm_forget"]
    assert how.get("precision") or same_state(vanilla, before)


@pytest.mark.parametrize("parameters", ["all", "lora"])
def test_what_rounding_to_the_models_dtype_takes_back_is_said(tmp_path, parameters):
    vanilla, how = build("llama").to(torch.bfloat16), {"parameters": parameters, "steps": 2}
    rate = 3e-5 if parameters == "all" else 1e-4
    trained = _run(vanilla.float(), "ga", learning_rate=rate, **how)
    vanilla = vanilla.to(torch.bfloat16)
    with pytest.warns(KrsWarning, match=r"ga: rounded to bfloat16, the weights keep \d+% of the way"):
        rounded = _run(vanilla, "ga", learning_rate=rate, output_dir=tmp_path / "u", **how)
    way, left = ((_weights(m).float() - _weights(vanilla).float()).detach() for m in (trained, rounded))
    said = json.loads((tmp_path / "u" / "krs_unlearn.json").read_text())["survives_rounding"]
    assert 0 < said < 0.5
    assert said == pytest.approx(float(left @ way / way.square().sum()), rel=0.02)
    with pytest.raises(KrsError, match="no weight moved so far that bfloat16 tells it|no parameter moved"):
        _run(vanilla, "ga", learning_rate=1e-12, **how)
    _run(build("llama"), "ga", learning_rate=rate, output_dir=tmp_path / "wide", **how)
    assert json.loads((tmp_path / "wide" / "krs_unlearn.json").read_text())["survives_rounding"] is None
