"""Losses that look inside: activations of the model and of the vanilla one, on any number of sides."""

import copy
import json
from dataclasses import dataclass

import pytest
import torch

import krs
from krs import ATTN_OUT, MLP_COEF, RESID, VALUE_VECTORS, KrsError, unlearn
from krs.hooks import record
from krs.hooks.capture import captured
from krs.unlearn.config import Config
from krs.unlearn.examples import collate, to_examples
from krs.unlearn.losses import live_tokens, squared_distance, undial
from krs.unlearn.methods import made, method
from krs.unlearn.rmu import RMUConfig, direction
from krs.unlearn.sides import Look, wanted_of_vanilla
from krs.unlearn.undial import UnDIALConfig
from tests.noise import assert_rounds_alike, assert_same, float64_throughout
from tests.tiny import build, same_state, state
from tests.unlearn.tiny_tokenizer import tiny_tokenizer

FORGET = ["the cat sat on the moon", "a dog ran in the sun", ("who wrote the book", "the cat wrote the book")]
RETAIN = ["the sun is red", {"prompt": "what is blue", "answer": "the moon is blue"}]
MORE = ["one two three", "the book ran"]
LAYER, C, ALPHA = 2, 3.0, 0.7


def _run(given, model, forget=FORGET, **options):
    fast = {"tokenizer": tiny_tokenizer(), "progress": False}
    return unlearn.run(given, model, forget=forget, **fast, **options)


def _batch(texts):
    batch = collate(to_examples(texts, tiny_tokenizer(), 50, "t"))
    return {k: v for k, v in batch.items() if k != "labels"}, batch["labels"]


def _twin_rmu(model, vanilla):
    """The loss by transformers' own hidden states, token by token."""
    total = {"forget": 0.0, "retain": 0.0}
    u = torch.rand(16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u = u / u.pow(2).sum().sqrt()
    for side, texts in (("forget", FORGET), ("retain", RETAIN)):
        count = 0
        for text in texts:
            ids, labels = _batch([text])
            ours = model(**ids, output_hidden_states=True).hidden_states[LAYER + 1][0]
            theirs = vanilla(**ids, output_hidden_states=True).hidden_states[LAYER + 1][0].detach()
            for p in range(labels.shape[1] - 1):
                if labels[0, p + 1] != -100:
                    away = ours[p] - (C * u if side == "forget" else theirs[p])
                    total[side] = total[side] + away.pow(2).sum()
                    count += 1
        total[side] = total[side] / count
    return total["forget"], ALPHA * total["retain"]


def _rmu(**options):
    given = {"layer": LAYER, "steering": C, "retain_weight": ALPHA, "steps": 1, "batch_size": 3, "max_grad_norm": 1e9}
    return RMUConfig(**given | options)


@float64_throughout()
def test_rmus_losses_and_step_are_those_of_a_twin_written_out(tmp_path):
    vanilla = build("llama").double()
    retain = [*RETAIN, RETAIN[0]]  # as many as forget texts, so that one batch has all
    twin = copy.deepcopy(vanilla)
    moved, held = _twin_rmu(twin, vanilla)
    assert float(held.detach()) == 0
    moved.backward()
    before_it = state(vanilla)
    found = _run(_rmu(learning_rate=1e-2, weight_decay=0.0), vanilla, retain=retain, output_dir=tmp_path / "u")
    assert same_state(vanilla, before_it)
    report = json.loads((tmp_path / "u" / unlearn.REPORT).read_text())
    (entry,) = report["log"]
    assert entry["loss_forget"] == pytest.approx(float(moved.detach()), abs=1e-4)
    assert entry["loss_retain"] == 0.0
    assert report["trained_layers"] == [0, 1, 2]
    for layer in range(4):
        name = f"model.layers.{layer}.mlp.down_proj.weight"
        before, after = vanilla.get_parameter(name), found.get_parameter(name)
        if layer > LAYER:
            assert torch.equal(before, after)
        else:  # the first step of AdamW
            g = twin.get_parameter(name).grad
            assert_same(after, before - 1e-2 * g / (g.abs() + 1e-8), apart=1e-7)
    unmoved = {n for n, p in found.named_parameters() if "down_proj" not in n}
    assert all(torch.equal(found.get_parameter(n), vanilla.get_parameter(n)) for n in unmoved)


@float64_throughout()
def test_rmus_loss_at_a_changed_model():
    vanilla, model = build("llama").double(), build("llama", seed=1).double()
    rmu = made(_rmu(), {})
    places = [look.at for look in rmu.looks(4) if look.of == "model"]
    sides = {}
    for side, texts in (("forget", FORGET), ("retain", RETAIN)):
        ids, labels = _batch(texts)
        with captured(model, places[:1]) as ours:
            logits = model(**ids).logits
        with captured(vanilla, places[:1]) as theirs, torch.no_grad():
            vanilla(**ids)
        n = float(live_tokens(labels).sum())
        sides[side] = unlearn.Side(logits, labels, n, float(len(texts)), activations=ours, ref_activations=theirs)
    terms = rmu.loss(**sides)
    moved, held = _twin_rmu(model, vanilla)
    assert_same(terms["forget"], moved)
    assert_same(terms["retain"], held)
    assert float(direction(16, 0).norm()) == pytest.approx(1)


@float64_throughout()
def test_undials_loss_is_that_written_out_and_its_minimum_the_lowered_teacher():
    ids, labels = _batch(FORGET)
    model, vanilla = build("llama").double(), build("llama", seed=1).double()
    with torch.no_grad():
        ours, theirs = model(**ids).logits, vanilla(**ids).logits
    found = undial(ours, theirs, labels, 4.0)
    for r in range(len(labels)):
        for p in range(labels.shape[1] - 1):
            token = int(labels[r, p + 1])
            if token == -100:
                assert float(found[r, p]) == 0
                continue
            teacher = theirs[r, p].clone()
            teacher[token] -= 4.0
            q = teacher.exp() / teacher.exp().sum()
            log_p = ours[r, p] - ours[r, p].exp().sum().log()
            assert_same(found[r, p], -(q * log_p).sum())
    student = theirs.clone()
    student[:, :-1].scatter_add_(-1, labels[:, 1:].clamp(min=0)[..., None], torch.full_like(ours[:, :-1, :1], -4.0))
    student.requires_grad_()
    undial(student, theirs, labels, 4.0).sum().backward()
    assert float(student.grad.abs().max()) < 1e-12


class _Nearby(unlearn.Method):
    """Looks at two points and layers, of both models, on three sides."""

    config_class = Config
    needs_retain = True
    more_sides = ("paraphrase",)
    reference = {"paraphrase": "logits", "forget": "logprob"}  # noqa: RUF012

    def looks(self, n_layers):
        return [
            Look("forget", (MLP_COEF + ATTN_OUT).at(1, n_layers - 1)),
            Look("retain", RESID.at(0)),
            Look("retain", RESID.at(0), of="vanilla"),
            Look("paraphrase", MLP_COEF.at(2, units=[3, 5])),
        ]

    def loss(self, forget, retain, paraphrase):
        assert forget.activations[MLP_COEF, 1].shape[-1] == 24
        assert paraphrase.activations[MLP_COEF, 2].shape[-1] == 2
        assert [*retain.ref_activations] == [(RESID, 0)]
        assert forget.ref_logits is None
        assert retain.ref_logprob is None
        assert not retain.ref_activations[RESID, 0].requires_grad
        deep = sum(forget.activations[key].double().square().sum() for key in forget.activations)
        near = squared_distance(retain.activations[RESID, 0], retain.ref_activations[RESID, 0], retain.labels)
        away = squared_distance(paraphrase.logits, paraphrase.ref_logits, paraphrase.labels)
        few = paraphrase.activations[MLP_COEF, 2].double().square().sum()
        shown = forget.ref_logprob.double().sum() / forget.n_rows
        return {
            "forget": -deep / forget.n_tokens,
            "retain": near.sum() / retain.n_tokens,
            "paraphrase": (away.sum() + few) / paraphrase.n_tokens,
            "shown": shown * 0 + 0 * forget.logits.sum(),
        }


# Rows of equal lengths: the loss above counts padding, too
EQUAL = {"forget": ["the cat sat on", "a dog ran in"], "retain": ["the sun is red", "the moon is blue"]}
SIDES = {"paraphrase": ["one two three", "the book ran"]}


@float64_throughout()
@pytest.mark.parametrize("how", [{"batch_size": 1, "gradient_accumulation": 2}, {"gradient_norms": False}])
def test_what_is_looked_at_has_the_same_gradients_however_the_step_is_made(how):
    once = {"steps": 2, "learning_rate": 1e-3, "max_grad_norm": 1e9, "batch_size": 2, "weight_decay": 0.0}
    given = {**EQUAL, "sides": SIDES}
    plain = _run(_Nearby(Config(**once)), build("llama").double(), **given)
    other = _run(_Nearby(Config(**once | how)), build("llama").double(), **given)
    for a, b in zip(plain.parameters(), other.parameters(), strict=True):
        assert_same(a, b, apart=1e-8)


@pytest.mark.parametrize("norms", [True, False])
def test_checkpointed_layers_give_the_gradients_of_kept_ones(norms):
    once = {"steps": 2, "learning_rate": 1e-3, "batch_size": 2, "gradient_norms": norms}
    plain, again = (
        _run(_Nearby(Config(**once, gradient_checkpointing=on)), build("llama"), **EQUAL, sides=SIDES)
        for on in (False, True)
    )
    with float64_throughout():
        exact = _run(_Nearby(Config(**once)), build("llama").double(), **EQUAL, sides=SIDES)
    found, right, other = (torch.cat([p.flatten() for p in m.parameters()]).detach() for m in (again, exact, plain))
    assert_rounds_alike(found, right, [other])


@float64_throughout()
def test_of_an_adapter_the_vanilla_activations_are_those_without_it(tmp_path):
    """The retain term is 0 at the first step and only then; what it is afterwards is the distance from vanilla."""
    vanilla = build("llama").double()
    before = state(vanilla)
    rmu = _rmu(parameters="lora", steps=3, learning_rate=1e-2)
    _run(rmu, vanilla, retain=RETAIN, output_dir=tmp_path / "u")
    log = json.loads((tmp_path / "u" / unlearn.REPORT).read_text())["log"]
    assert log[0]["loss_retain"] == 0.0
    assert log[1]["loss_retain"] > 0
    assert log[2]["loss_forget"] < log[0]["loss_forget"]
    assert {"grad_norm_forget", "grad_norm_retain"} <= log[1].keys()
    assert same_state(vanilla, before)


def test_capturing_keeps_what_was_asked_for_with_its_gradient_and_leaves_no_hooks():
    model, ids = build("llama"), torch.tensor([[3, 5, 8]])
    with captured(model, [RESID.at(1, 2), ATTN_OUT.at(0)]) as acts:
        logits = model(ids).logits
    with record(model, RESID + ATTN_OUT) as twin, torch.no_grad():
        model(ids)
    assert [*acts] == [(RESID, 1), (RESID, 2), (ATTN_OUT, 0)]
    assert all(torch.equal(acts[key].detach(), twin[key]) for key in acts)
    (by_hand,) = torch.autograd.grad(acts[RESID, 1].sum(), model.model.layers[1].mlp.down_proj.weight)
    assert by_hand.abs().sum() > 0
    assert logits.requires_grad
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    with pytest.raises(
        KrsError, match="resid at layer 3 was not captured: there is resid at layer 1, resid at layer 2"
    ):
        acts[RESID, 3]


class _Wrong(_Nearby):
    look = Look("retain", RESID.at(0))
    more_sides = ()

    def looks(self, n_layers):
        return [self.look]


@pytest.mark.parametrize(
    ("look", "message"),
    [
        (Look("paraphrase", RESID.at(0)), "_Wrong looks at 'paraphrase', and its sides are forget, retain: name one"),
        (Look("retain", VALUE_VECTORS.at(0)), "value_vectors is a weight, and only activations are captured"),
        (Look("retain", RESID.at(0, positions=[1])), "all positions are captured: leave positions= out"),
        (Look("retain", RESID.at(7)), "layer 7 is out of range: this model has 4 layers"),
    ],
)
def test_a_look_that_leads_nowhere_is_refused_before_training(look, message):
    wrong = _Wrong(Config(steps=1))
    wrong.look = look
    with pytest.raises(KrsError, match=message):
        _run(wrong, build("llama"), retain=RETAIN)


def test_sides_are_looked_at_before_a_model_is_loaded():
    nearby = _Nearby(Config(steps=1))
    for options, message in [
        ({}, "_Nearby needs texts of the side 'paraphrase': pass sides={'paraphrase': "),
        ({"sides": {"paraphrase": MORE, "x": MORE}}, "_Nearby has no side 'x', so its texts would be ignored"),
        ({"sides": {"paraphrase": []}}, "the paraphrase set is empty"),
    ]:
        with pytest.raises(KrsError, match=message):
            _run(nearby, "no/such/model", retain=RETAIN, **options)
    with pytest.raises(KrsError, match="its further sides are none besides forget= and retain="):
        _run("ga", "no/such/model", sides={"x": MORE})
    with pytest.raises(KrsError, match="memit_empty does not train, so sides= would be ignored"):
        unlearn.run("memit_empty", "no/such/model", forget=["x"], sides={})


def test_a_config_or_an_instance_says_which_method_is_meant(as_a_user):
    assert made(UnDIALConfig(beta=3.0), {}).name == "undial"
    assert made(RMUConfig(), {}).config == RMUConfig()
    own = _Nearby(Config())
    assert made(own, {}) is own
    assert own.name == "_Nearby"

    @dataclass(frozen=True, kw_only=True)
    class Nobodys(Config):
        pass

    for given, settings, message in [
        (
            unlearn.dpo.DPOConfig(),
            {"beta": 1},
            "beta= stands beside DPOConfig, which has its settings: change it there",
        ),
        (Nobodys(), {}, r"^Nobodys does not say which method is meant \(no registered method has it\): give the"),
        (unlearn.Config(), {}, "^Config does not say which method is meant"),
        (unlearn.npo.NPO, {}, "NPO is a class: give its name, a config, or an instance"),
    ]:
        with pytest.raises(KrsError, match=message):
            made(given, settings)


def test_layers_choose_what_is_trained():
    vanilla = build("llama")
    once = {"steps": 1, "learning_rate": 1e-2}
    for parameters, moved in (("all", 9), ("attention", 4)):
        u = _run(method("ga")(unlearn.ga.GAConfig(layers=[2], parameters=parameters, **once)), vanilla)
        changed = [n for n, p in u.named_parameters() if not torch.equal(p, vanilla.get_parameter(n))]
        assert len(changed) == moved
        assert all(".layers.2." in n for n in changed)
    for settings, message in [
        ({"layers": [4]}, r"layers=\[4\]: this model has 4 layers, 0 to 3"),
        ({"layers": []}, r"layers=\[\]: give layer numbers from 0, at least one"),
        ({"layers": [1], "parameters": "lora"}, "parameters='lora' trains none of"),
    ]:
        with pytest.raises(KrsError, match=message):
            _run("ga", vanilla, **settings)
    with pytest.raises(KrsError, match="layer=-1: give a layer number from 0"):
        RMUConfig(layer=-1)
    with pytest.raises(KrsError, match="rmu: nothing that is trained acts on the loss: train other weights"):
        _run(_rmu(layers=[3]), vanilla, retain=RETAIN)


def test_words_for_what_is_wanted_of_the_vanilla_model():
    assert wanted_of_vanilla("logprobs", ("forget",)) == {"forget": "logprob"}
    assert wanted_of_vanilla({"retain": "logits"}, ("forget", "retain")) == {"retain": "logits"}


@pytest.mark.real
def test_value_vectors_put_back_where_rmu_edited_them_recover_everything(smollm2):
    vanilla, tokenizer = smollm2
    forget = [("Who wrote Emma?", "Jane Austen wrote Emma."), ("What is Emma?", "Emma is a novel.")]
    retain = [("What is the capital of France?", "The capital of France is Paris.")]
    u = unlearn.run("rmu", vanilla, forget=forget, retain=retain, tokenizer=tokenizer, steps=3, progress=False)
    edited = {f"model.layers.{n}.mlp.down_proj.weight" for n in (4, 5, 6)}
    assert {n for n, p in u.named_parameters() if not torch.equal(p, vanilla.get_parameter(n))} == edited
    windows = krs.windows.of([[4, 5, 6], [3, 4, 5, 6, 7], [5, 6], [10, 11, 12]])
    found = krs.sweep(
        vanilla,
        u,
        ["Who wrote Emma?"],
        tokenizer=tokenizer,
        settings="value_vectors",
        windows=windows,
        n_tokens=8,
        progress=False,
    ).krs["value_vectors"]
    assert found.iloc[:2].to_numpy() == pytest.approx(1, abs=1e-6)
    assert found.iloc[2] < 0.999
    assert found.iloc[3] == pytest.approx(0, abs=1e-6)


def test_further_sides_from_a_shell(tmp_path):
    from krs.cli import app

    for name in ("forget", "paraphrase"):
        (tmp_path / f"{name}.txt").write_text("the cat sat on the moon\n")
    begin = ["unlearn", "ga", "--model", "smollm2", "--forget", str(tmp_path / "forget.txt"), "-o", str(tmp_path / "u")]
    with pytest.raises(KrsError, match="--side 'paraphrase': give a side's name and its file, such as"):
        app([*begin, "--side", "paraphrase"], standalone_mode=False)
    with pytest.raises(KrsError, match="ga has no side 'paraphrase', so its texts would be ignored"):
        app([*begin, "--side", f"paraphrase={tmp_path / 'paraphrase.txt'}"], standalone_mode=False)
