"""The whole edit, in every family: what it changes, what it leaves, and whether KRS sees it."""

import json
import re

import pytest
import torch

import krs
from krs import KrsError, unlearn
from krs.unlearn.memit import method as memit_method
from krs.unlearn.memit.config import MemitEmptyConfig, MemitEntropyConfig
from krs.unlearn.memit.method import default_layers
from krs.unlearn.memit.places import site
from krs.unlearn.memit.requests import to_requests
from krs.unlearn.methods import make, method
from tests.noise import assert_same, float64_throughout
from tests.tiny import FAMILIES, build, same_state, state
from tests.unlearn.memit_case import CHAT, CORPUS, FAST, LAYERS, POST_NORM, REQUESTS, edited
from tests.unlearn.tiny_tokenizer import tiny_tokenizer

ENTROPY_TOO = ["llama", "gemma2", "gpt2", "opt"]


@pytest.fixture
def wanted(monkeypatch):
    """What `targets` found during the edit."""
    found = []
    plain = memit_method.targets

    def watched(*args):
        found.append(plain(*args))
        return found[-1]

    monkeypatch.setattr(memit_method, "targets", watched)
    return found


def _changed(vanilla, unlearned):
    before, after = vanilla.state_dict(), unlearned.state_dict()
    return {name for name in before if not torch.equal(before[name], after[name])}


def _block_outputs(model):
    """At each request's subject, the output of the last edited layer, read by `transformers` itself."""
    rows = []
    for one in site(to_requests(REQUESTS), ("{}",), tiny_tokenizer(), 50):
        (place,) = one.places
        with torch.no_grad():
            out = model(input_ids=torch.tensor([place.ids]), output_hidden_states=True, use_cache=False)
        rows.append(out.hidden_states[LAYERS[-1] + 1][0, place.position])
    return torch.stack(rows)


@float64_throughout()
def _check(name, which, wanted):
    vanilla = build(name).double()
    before = state(vanilla)
    unlearned, log = edited(vanilla, which)
    assert same_state(vanilla, before)
    paths = {krs.hooks.anatomy(vanilla).path(krs.VALUE_VECTORS, layer) + ".weight" for layer in LAYERS}
    assert _changed(vanilla, unlearned) == paths

    (found,) = wanted
    assert_same(_block_outputs(vanilla), found.z0)
    left = (found.z - _block_outputs(unlearned)).norm(dim=-1) / (found.z - found.z0).norm(dim=-1)
    assert (left < (0.9 if name in POST_NORM else 1e-3)).all(), left
    spread = [e for e in log if e["step"] == "spread"]
    assert_same(spread[-1]["remaining"], float(left.mean()))
    assert spread[0]["remaining"] > spread[1]["remaining"]
    if name in POST_NORM:
        assert spread[-1]["remaining"] < 0.8

    result = krs.sweep(
        vanilla,
        unlearned,
        [[3, 5, 8]],
        n_tokens=2,
        settings=["value_vectors"],
        windows=krs.windows.of([list(LAYERS)]),
        progress=False,
    )
    assert_same(result.krs.to_numpy(), [[1.0]])
    return log


@pytest.mark.parametrize("name", [*FAMILIES, "lfm2", "olmo_hybrid"])
def test_empty_moves_the_subject_in_every_family_and_its_value_vectors_alone_explain_it(name, wanted):
    targets = [e for e in _check(name, "memit_empty", wanted) if e["step"] == "target"]
    assert all(e["loss"] < e["loss_before"] for e in targets)
    assert all(e["delta_norm"] <= 4.0 * e["z0_norm"] * 1.0001 for e in targets)


@pytest.mark.parametrize("name", ENTROPY_TOO)
def test_entropy_does_too(name, wanted):
    targets = [e for e in _check(name, "memit_entropy", wanted) if e["step"] == "target"]
    assert all(e["loss"] < e["loss_before"] for e in targets)


def _target_nll(model):
    words = tiny_tokenizer().convert_tokens_to_ids(["who", "is", "the", "cat", "of", "blue"])
    with torch.no_grad():
        return -torch.log_softmax(model(input_ids=torch.tensor([words[:-1]])).logits[0, -1], -1)[words[-1]].item()


@float64_throughout()
def test_after_the_edit_the_word_is_likelier_and_the_old_answers_likelihood_is_logged():
    vanilla = build("llama").double()
    unlearned, log = edited(vanilla)
    assert _target_nll(unlearned) < _target_nll(vanilla) - 0.05
    objects = [e for e in log if e["step"] == "object"]
    assert [e["request"] for e in objects] == [0, 1]
    tokenizer = tiny_tokenizer()
    ids = tokenizer("who is the cat of dog")["input_ids"]
    for model, key in ((vanilla, "nll_before"), (unlearned, "nll_after")):
        with torch.no_grad():
            scores = torch.log_softmax(model(input_ids=torch.tensor([ids[:-1]])).logits[0, -1], -1)
        assert_same(objects[0][key], -scores[ids[-1]].item())


def test_the_log_is_plain_numbers_a_step_an_entry():
    _, log = edited(build("llama"))
    assert json.loads(json.dumps(log)) == log
    assert [e["step"] for e in log] == ["covariance"] * 2 + ["target"] * 3 + ["spread"] * 2 + ["object"] * 2
    assert log[0]["layer"] == 1
    assert log[0]["condition"] > 1
    assert log[5]["relative_change"] > 0


@pytest.mark.parametrize("name", ["memit_empty", "memit_entropy"])
def test_two_runs_are_the_same_bit_for_bit(name):
    contexts = ("{}", "and the {}")
    (one, log), (two, again) = (edited(build("llama"), name, contexts=contexts) for _ in range(2))
    assert same_state(one, state(two))
    assert log == again


@float64_throughout()
def test_requests_side_by_side_give_what_they_give_one_by_one():
    vanilla = build("gpt2").double()
    together, log = edited(vanilla, steps=4)
    apart, other = edited(vanilla, steps=4, batch_size=1)
    for a, b in zip(together.parameters(), apart.parameters(), strict=True):
        assert_same(a, b)
    assert_same(*([e["loss"] for e in each if e["step"] == "target"] for each in (log, other)))


def test_parameters_take_gradients_afterwards_as_they_did_before():
    vanilla = build("llama")
    vanilla.lm_head.weight.requires_grad_(False)
    unlearned, _ = edited(vanilla, steps=1)
    flags = [p.requires_grad for p in vanilla.parameters()]
    assert [p.requires_grad for p in unlearned.parameters()] == flags
    assert all(p.grad is None for p in unlearned.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in unlearned.modules())


def test_a_large_lambda_keeps_the_model_as_it_is():
    changes = []
    for weight in (1e-4, 1.0, 1e4):
        _, log = edited(build("llama"), steps=3, covariance_weight=weight)
        changes.append(next(e["relative_change"] for e in log if e["step"] == "spread"))
    assert changes[0] > changes[1] > changes[2]


def test_pairs_serve_as_requests_once_the_subjects_are_named():
    settings = {"subjects": ["red book", "cat"], "layers": [1, 2], "contexts": ["{}"]}
    pairs = [("who is the cat of", "dog"), {"prompt": CHAT, "answer": "the sun"}]
    as_pairs, _ = edited(build("llama"), forget=pairs, steps=2, **settings)
    as_requests, _ = edited(build("llama"), forget=REQUESTS[:2], steps=2)
    assert same_state(as_pairs, state(as_requests))


def test_the_default_window_is_a_share_of_the_depth():
    assert all(default_layers(n)[-1] < n for n in (1, 2, 4, 12, 30, 32, 80))
    assert default_layers(80) == (16, 17, 18, 19, 20)
    _, log = edited(build("llama"), steps=1, layers=None)
    assert [e["layer"] for e in log if e["step"] == "spread"] == [0, 1]


def test_run_edits_a_copy_and_reports_how(tmp_path):
    vanilla = build("llama").to(torch.bfloat16)
    before = state(vanilla)
    unlearned = unlearn.run(
        "memit_empty",
        vanilla,
        forget=REQUESTS,
        corpus=CORPUS,
        tokenizer=tiny_tokenizer(),
        output_dir=tmp_path / "u",
        progress=False,
        **FAST,
        target="blue",
    )
    assert same_state(vanilla, before)
    assert {p.dtype for p in unlearned.parameters()} == {torch.bfloat16}
    assert len(_changed(vanilla, unlearned)) == 2
    report = json.loads((tmp_path / "u" / "krs_unlearn.json").read_text())
    assert report["config"]["layers"] == [1, 2]
    assert [e["step"] for e in report["log"]].count("target") == 3


def test_the_methods_are_registered():
    assert {"memit_empty", "memit_entropy"} <= set(unlearn.methods())
    assert method("memit_empty").needs_corpus
    assert make("memit_empty", {"layers": [3, 4]}).config == MemitEmptyConfig(layers=(3, 4))
    assert isinstance(make("memit_entropy", {}).config, MemitEntropyConfig)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": ()}, "layers=() names no layer: give at least one, or leave it out"),
        ({"layers": (2, 1)}, "give each layer once, from the first to the last"),
        ({"layers": (-1, 2)}, "give layer numbers, from 0"),
        ({"layers": (9,)}, "layer 9 is out of range: this model has 4 layers"),
        ({"steps": 0}, "steps=0: it has to be positive"),
        ({"covariance_weight": 0.0}, "covariance_weight=0.0: it has to be positive"),
        ({"ridge": -0.1}, "ridge=-0.1: it may not be negative"),
        ({"contexts": ()}, "contexts=(): give at least one, each with {} once"),
        ({"contexts": ("so",)}, "each with {} once, where the prompt goes"),
        ({"contexts": "so {}"}, "contexts='so {}' is a str: give a list"),
        ({"subjects": "cat"}, "subjects='cat' is a str: give a list"),
        ({"target": " "}, "target=' ': give a word"),
        ({"max_length": 3}, "the prompt about 'cat' has 5 tokens, more than max_length=3: shorten it"),
        ({"corpus": None}, "memit_empty needs a corpus: pass corpus=, texts"),
        ({"corpus": "text"}, "corpus is one string: pass a list"),
        ({"corpus": []}, "the corpus set is empty: give at least one text"),
        ({"min_tokens": 1000}, "fewer than min_tokens=1000: give more text (a layer has 24 coefficients"),
        ({"corpus": CORPUS[:3], "ridge": 0.0}, "for 24 coefficients, so that their second moment is singular"),
        ({"forget": []}, "the forget set is empty: give at least one request"),
        ({"forget": [("the cat sat", "on")]}, "forget item 0: the prompt 'the cat sat' comes without its subject"),
    ],
)
def test_bad_input(settings, message, as_a_user):
    vanilla = build("llama")
    before = state(vanilla)
    with pytest.raises(KrsError, match=re.escape(message)):
        edited(vanilla, **settings)
    assert same_state(vanilla, before)


def test_a_mixture_of_experts_has_no_projection_to_edit():
    with pytest.raises(KrsError, match="have no mlp_out_proj: each token goes through several experts"):
        edited(build("moe"))
    with pytest.raises(KrsError, match="layer 2 of this Qwen3NextForCausalLM has no mlp_out_proj, only 0, 1 have"):
        edited(build("qwen3_next"))
