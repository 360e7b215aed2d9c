import json
import math
import re
from pathlib import Path

import pytest
import torch

import krs
from krs import KrsError, unlearn
from krs.unlearn.examples import collate, to_examples
from krs.unlearn.losses import IGNORED
from krs.unlearn.methods import Method, make, method, register
from tests.noise import assert_same, float64_throughout
from tests.tiny import build, same_state, state
from tests.unlearn.tiny_tokenizer import tiny_tokenizer

FORGET = ["the cat sat on the moon", "a dog ran in the sun", ("who wrote the book", "the cat wrote the book")]
RETAIN = ["the sun is red", {"prompt": "what is blue", "answer": "the moon is blue"}]
FAST = {"steps": 3, "batch_size": 2, "learning_rate": 1e-2}


@pytest.fixture
def tokenizer():
    return tiny_tokenizer()


def _run(name, model, **options):
    fast = {} if name.startswith("memit") else FAST
    given = {"forget": FORGET, "tokenizer": tiny_tokenizer(), "progress": False} | fast | options
    if name not in METHODS:
        return unlearn.run(name, model, **given)
    if method(name).needs_retain and not method(name).makes_retain:
        given.setdefault("retain", RETAIN)
    if name == "dpo_idk" and "forget" not in options:
        given["forget"] = [
            ("who wrote the book", "the cat wrote the book"),
            {"prompt": "what is red", "answer": "the sun"},
        ]
    return unlearn.run(name, model, **given)


def _nll(model, texts=FORGET):
    batch = collate(to_examples(texts, tiny_tokenizer(), 50, "t"))
    labels = batch.pop("labels")
    with torch.no_grad():
        logits = model(**batch).logits.float()
    return torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED
    ).item()


EDITS = ["memit_empty", "memit_entropy"]
METHODS = ["dpo_idk", "dpo_retain_text", "ga", "grad_diff", "grad_diff_ce", "npo", "npo_kl", "rmu", "simnpo", "undial"]


@pytest.mark.parametrize("name", [m for m in METHODS if m != "rmu"])  # rmu's loss is not one of likelihoods
def test_a_method_makes_the_forget_texts_unlikely_and_leaves_the_vanilla_model_alone(name):
    vanilla = build("llama")
    before = state(vanilla)
    unlearned = _run(name, vanilla)
    assert same_state(vanilla, before)
    assert not unlearned.training
    texts = FORGET if name != "dpo_idk" else [("who wrote the book", "the cat wrote the book")]
    assert _nll(unlearned, texts) > _nll(vanilla, texts) + 0.02
    assert unlearned.lm_head.weight is unlearned.model.embed_tokens.weight
    krs.sweep(vanilla, unlearned, [[3, 5, 8]], n_tokens=3, progress=False)


def test_a_hybrid_of_attention_and_other_mixers_is_trained_as_any_model():
    vanilla = build("qwen3_next")
    unlearned = _run("npo", vanilla)
    assert _nll(unlearned) > _nll(vanilla) + 0.02
    moved = {n for n, p in unlearned.named_parameters() if not torch.equal(p, vanilla.get_parameter(n))}
    assert {f"model.layers.0.linear_attn.{n}" for n in ("A_log", "conv1d.weight", "out_proj.weight")} <= moved


def test_a_bf16_model_is_trained_in_fp32_and_comes_back_in_bf16():
    vanilla = build("llama").to(torch.bfloat16)
    unlearned = _run("npo", vanilla)
    assert {p.dtype for p in unlearned.parameters()} == {torch.bfloat16}
    assert _nll(unlearned) > _nll(vanilla)


def test_the_checkpoint_carries_model_tokenizer_and_how_it_was_made(tmp_path):
    vanilla = build("llama")
    unlearned = _run("npo", vanilla, output_dir=tmp_path / "u", beta=0.2)
    again, _ = krs.load(tmp_path / "u")
    assert same_state(again, state(unlearned))
    report = json.loads((tmp_path / "u" / "krs_unlearn.json").read_text())
    assert report["method"] == "npo"
    assert report["config"]["beta"] == 0.2
    assert len(report["log"]) == 3
    assert report["log"][0]["loss"] == pytest.approx(2 / 0.2 * math.log(2), abs=1e-3)
    with pytest.raises(KrsError, match="is not empty: give another one, or overwrite=True"):
        _run("npo", vanilla, output_dir=tmp_path / "u")


@pytest.mark.parametrize("name", [m for m in METHODS if m != "dpo_idk"])
@float64_throughout()
def test_gradient_accumulation_equals_one_large_batch(name):
    texts = {"forget": [*FORGET, "one two three"], "retain": [*RETAIN, "a red dog", "three blue books ran"]}
    texts = texts if method(name).needs_retain else {"forget": texts["forget"]}
    once = {"steps": 1, "learning_rate": 1e-2, "max_grad_norm": 1e9}
    large = _run(name, build("llama").double(), batch_size=4, **texts, **once)
    parts = _run(name, build("llama").double(), batch_size=1, gradient_accumulation=4, **texts, **once)
    for a, b in zip(large.parameters(), parts.parameters(), strict=True):
        assert_same(a, b)


def test_answers_only_are_learnt_and_their_eos_is_too(tokenizer):
    (example,) = to_examples([("who wrote the book", "the cat")], tokenizer, 50, "forget")
    batch = collate([example])
    words = tokenizer.convert_ids_to_tokens(batch["input_ids"][0])
    assert words == ["who", "wrote", "the", "book", "the", "cat", "</s>"]
    assert batch["labels"][0].tolist() == [IGNORED] * 4 + list(example.ids[4:])


def test_padding_never_masks_the_eos_that_is_also_the_pad(tokenizer):
    batch = collate(to_examples([("who", "the cat"), ("who", "a dog ran on and on")], tokenizer, 50, "forget"))
    eos = tokenizer.eos_token_id
    assert batch["labels"][0, 3] == eos
    assert batch["attention_mask"][0].tolist() == [1, 1, 1, 1, 0, 0, 0, 0]
    assert batch["labels"][0, 4:].eq(IGNORED).all()


def test_chat_prompts_go_through_the_template(tokenizer):
    chat = [{"role": "user", "content": "who wrote the book"}]
    (example,) = to_examples([(chat, "the cat")], tokenizer, 50, "forget")
    words = tokenizer.convert_ids_to_tokens(example.ids)
    assert words[: example.n_prompt] == ["user", "who", "wrote", "the", "book", "assistant"]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("npo", {"forget": []}, "the forget set is empty"),
        ("npo", {"forget": "text"}, "forget is one string"),
        ("npo", {"forget": ["the cat", " "]}, "forget text 1 is empty"),
        ("npo", {"forget": ["the"]}, "a single token"),
        ("npo", {"forget": [("the cat", " ")]}, "an empty answer"),
        ("npo", {"forget": [{"prompt": "the"}]}, "has no answer"),
        ("npo", {"forget": [("the cat sat", "on")], "max_length": 3}, "leaves no room for the answer"),
        ("grad_diff", {"retain": None}, "grad_diff needs a retain set"),
        ("npo", {"retain": RETAIN}, "no retain term"),
        ("dpo_idk", {"forget": ["the cat sat"]}, "forget text 0 is a paragraph, and dpo_idk compares two answers"),
        ("dpo_idk", {"retain": RETAIN}, "makes its own retain side"),
        ("dpo_retain_text", {"retain": None}, "dpo_retain_text needs a retain set"),
        ("npo", {"gamma": 1}, "npo has no setting 'gamma': it has .*beta"),
        ("npo", {"steps": "three"}, "npo: steps='three' is a str: give an int"),
        ("npo", {"gradient_norms": 1}, "gradient_norms=1 is an int: give true or false"),
        ("npo", {"stop_bleu": "low"}, "stop_bleu='low' is a str: give a number or nothing"),
        ("npo", {"lr": 1e-5}, "npo has no setting 'lr': it has .*learning_rate"),
        ("npo", {"step": 1}, "Did you mean 'steps'"),
        ("nppo", {}, "unknown unlearning method 'nppo'.*Did you mean 'npo'"),
        ("memit_empty", {"layers": 99}, "layers=99 is an int: give a list such as .3, 4. or nothing"),
        ("npo", {"steps": 0}, "steps=0: it has to be positive"),
        ("gradient_descent", {}, "unknown unlearning method .* known are dpo_idk, .*npo"),
        ("npo", {"learning_rate": 1e-30}, "no parameter moved"),
        ("grad_diff", {"learning_rate": 1e30, "steps": 6, "weight_decay": 0.0}, "lower the learning rate"),
    ],
)
def test_bad_input(name, options, message, as_a_user):
    vanilla = build("llama")
    before = state(vanilla)
    with pytest.raises(KrsError, match=message):
        _run(name, vanilla, **options)
    assert same_state(vanilla, before)


def test_the_documented_defaults_are_the_defaults():
    docs = (Path(unlearn.__file__).parents[2] / "docs" / "unlearning.md").read_text(encoding="utf-8")
    (table,) = re.findall(r"^\| defaults \|(.*?)\n\n", docs, re.MULTILINE | re.DOTALL)
    head, _, *rows = table.splitlines()
    names = re.findall(r"`(\w+)`", head)
    found = {re.findall(r"`(\w+)`", row)[0]: [cell.strip() for cell in row.split("|")[2:-1]] for row in rows}
    assert found.keys() == set(METHODS)
    for name, cells in found.items():
        config = method(name).config_class()
        assert dict(zip(names, [float(c) if c else None for c in cells], strict=True)) == {
            n: getattr(config, n, None) for n in names
        }


def test_sets_are_looked_at_before_a_model_is_loaded():
    for name, options, message in [
        ("npo_kl", {"forget": FORGET}, "npo_kl needs a retain set"),
        ("npo", {"forget": FORGET, "corpus": ["text"]}, "npo uses no corpus="),
        ("npo", {"forget": []}, "the forget set is empty: give at least one text"),
        ("memit_empty", {"forget": FORGET}, "memit_empty needs text to take statistics of"),
        ("memit_empty", {"forget": FORGET, "corpus": []}, "the corpus set is empty: give at least one text"),
    ]:
        with pytest.raises(KrsError, match=message):
            unlearn.run(name, "no/such/model", **options)


def test_a_model_in_training_mode_or_without_tokenizer_is_refused():
    with pytest.raises(KrsError, match="in training mode"):
        _run("npo", build("llama").train())
    with pytest.raises(KrsError, match="no tokenizer was found"):
        _run("npo", build("llama"), tokenizer=None)


def test_methods_register_themselves_and_keep_their_names():
    assert unlearn.methods() == sorted([*METHODS, *EDITS])
    with pytest.raises(KrsError, match="'npo' is registered already"):
        register("npo")(type("Other", (Method,), {}))
    assert method("npo").reference == "logprobs"
    assert make("grad_diff", {"retain_weight": 2.0}).config.retain_weight == 2.0


def test_other_packages_bring_methods_by_entry_point(tmp_path):
    """A package with an entry point, installed by putting it on the path, in a process of its own."""
    import subprocess
    import sys

    (tmp_path / "mine.py").write_text(
        "from krs.unlearn import Method, register\n"
        "@register('mine')\n"
        "class Mine(Method):\n"
        "    def loss(self, forget, retain):\n"
        "        return {'forget': 0 * forget.logits.sum()}\n"
    )
    info = tmp_path / "mine-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[krs.unlearn]\nmine = mine\n")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from krs import unlearn; print(unlearn.methods())"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert json.loads(said.replace("'", '"')) == sorted([*METHODS, *EDITS, "mine"])
