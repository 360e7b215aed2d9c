import copy
import json
import signal

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import save_file

import krs
from krs import KrsError, KrsWarning
from krs.metrics import check_account, load_account
from tests.adapters import adapted, merged_by_peft
from tests.noise import assert_same, float64_throughout
from tests.packed import Packed
from tests.tiny import FAMILIES, build, pair, perturbed, same_state, state

IDS = [[2, 3, 4, 5, 6], [2, 3, 7, 8]]
ANSWERS = [[9, 10, 11], [12, 13]]
FAST = {"answers": ANSWERS, "n_tokens": 3, "progress": False}


def _near(name, scale=0.01, **overrides):
    """A pair in float64 whose weights differ as little as an unlearned model's do."""
    v = build(name, **overrides).double()
    return v, perturbed(v, scale=scale)


@pytest.mark.parametrize("family", FAMILIES)
def test_parts_sum_to_the_baseline_of_a_sweep(family):
    with float64_throughout(family):
        v, u = _near(family)
        before = state(v), state(u)
        found = krs.account(v, u, IDS, points=8, **FAST)
        swept = krs.sweep(v, u, IDS, settings="attn_out", windows=krs.windows.of([[0]]), **FAST)
    assert found.error < 1e-3
    assert_same(found.baseline, float(swept.losses.baseline[swept.losses.mask].mean()))
    assert_same(found.by_component.sum(), 1.0)
    assert_same(float(np.nansum(found.frame.to_numpy(dtype=float))), 1.0)
    components = set(found.by_component.index)
    assert {"keys", "value_vectors", "attention_query", "attention_key", "attention_value"} <= components
    assert not {"attention_in", "other"} & components
    assert same_state(v, before[0])
    assert same_state(u, before[1])


def test_mixers_that_are_no_attention_have_no_heads_and_no_experts():
    v, u = _near("qwen3_5", scale=0.002)
    with float64_throughout():
        found = krs.account(v, u, IDS, points=16, **FAST)
    assert found.error < 1e-3
    assert_same(found.by_component.sum(), 1.0)
    for component, layer in [("attention_query", 1), ("attention_value", 1), ("attention_out", 1)]:
        assert len(found.units(component, layer)) == (1 if component == "attention_value" else 2)
    for component in ("attention_in", "attention_out"):
        with pytest.raises(KrsError, match="has no units there"):
            found.units(component, 0)


def _loss(model, wanted):
    total, n = 0.0, 0
    for ids, said, logits in zip(IDS, ANSWERS, wanted, strict=True):
        with torch.no_grad():
            got = model(torch.tensor([ids + said[:-1]])).logits[0, len(ids) - 1 :]
        total, n = total + ((got - logits) ** 2).mean(-1).sum(), n + len(said)
    return float(total / n)


def _by_hand(v, u, changed, points=12):
    """The part of some rows or columns: finite differences of the loss in their direction, along the line."""
    wanted = []
    with torch.no_grad():
        for ids, said in zip(IDS, ANSWERS, strict=True):
            wanted.append(v(torch.tensor([ids + said[:-1]])).logits[0, len(ids) - 1 :])
    moving, start, end = copy.deepcopy(u), dict(u.named_parameters()), dict(v.named_parameters())
    h, slopes = 1e-5, []
    nodes, weights = np.polynomial.legendre.leggauss(points)
    for t in (nodes + 1) / 2:
        with torch.no_grad():
            for name, p in moving.named_parameters():
                p.copy_(start[name] + t * (end[name] - start[name]))
            p, move = changed(moving), changed(v) - changed(u)
            here = p.clone()
            p.copy_(here + h * move)
            above = _loss(moving, wanted)
            p.copy_(here - h * move)
            slopes.append((above - _loss(moving, wanted)) / (2 * h))
            p.copy_(here)
    return -float(np.array(slopes) @ weights) / 2


@pytest.mark.parametrize(
    ("family", "component", "unit", "rows"),
    [
        ("llama", "value_vectors", 5, lambda m: m.model.layers[1].mlp.down_proj.weight[:, 5]),
        ("llama", "attention_out", 1, lambda m: m.model.layers[1].self_attn.o_proj.weight[:, 8:]),
        ("gpt2", "keys", 7, lambda m: m.transformer.h[1].mlp.c_fc.weight[:, 7]),
        ("gpt2", "attention_key", 1, lambda m: m.transformer.h[1].attn.c_attn.weight[:, 24:32]),
        ("gpt_neox", "attention_value", 0, lambda m: m.gpt_neox.layers[1].attention.query_key_value.weight[16:24]),
        ("phi3", "attention_query", 1, lambda m: m.model.layers[1].self_attn.qkv_proj.weight[8:16]),
    ],
)
def test_a_unit_is_what_finite_differences_of_its_rows_say(family, component, unit, rows):
    v, u = _near(family)
    with float64_throughout():  # norms compute in fp32 otherwise, too coarse for differences
        found = krs.account(v, u, IDS, points=8, **FAST)
        expected = _by_hand(v, u, rows)
    part = float(found.units(component, 1)[unit] * found.parts.sum())
    assert part == pytest.approx(expected, rel=1e-4)


def test_units_of_a_matrix_sum_to_its_part():
    v, u = _near("phi3")
    found = krs.account(v, u, IDS, points=2, **FAST)
    for component, size in [("keys", 24), ("value_vectors", 24), ("attention_query", 2), ("attention_key", 1)]:
        for layer in range(4):
            units = found.units(component, layer)
            assert list(units.index) == list(range(size))
            assert_same(units.sum(), found.frame.loc[component, layer])
    with pytest.raises(KrsError, match="has no units there; it has them for"):
        found.units("norms", 1)
    top = found.top(3, "value_vectors")
    assert set(top.component) == {"value_vectors"}
    assert_same(top.share[0], max(found.units("value_vectors", layer).max() for layer in range(4)))
    changed = sum(float((a - b).detach().square().sum()) for a, b in zip(v.parameters(), u.parameters(), strict=True))
    moved = (v.model.layers[2].mlp.down_proj.weight - u.model.layers[2].mlp.down_proj.weight).square().sum()
    row = found.to_frame().set_index(["component", "layer"]).loc[("value_vectors", 2)]
    assert_same(row.share_of_change, float(moved.detach()) / changed)
    assert_same(found.share_of_change.sum(), 1.0)


def test_models_that_say_the_same_have_nothing_to_share_out():
    v = build("llama")
    found = krs.account(v, copy.deepcopy(v), IDS, **FAST)
    assert found.baseline == 0
    assert np.isnan(found.error)
    assert found.by_component.isna().all()
    assert "the models say the same on the target prompts (logit MSE 0)" in repr(found)


def test_unrelated_prompts_beside():
    v, u = _near("llama")
    found = krs.account(v, u, IDS[:1], answers=ANSWERS[:1], unrelated=IDS[1:], points=2, n_tokens=3, progress=False)
    alone = krs.account(v, u, IDS[1:], points=2, n_tokens=3, progress=False)
    assert_same(found.unrelated.parts, alone.parts)
    assert_same(found.to_frame().unrelated, alone.to_frame().share)
    assert "unrelated" in repr(found)


def test_prompts_by_themselves_and_an_interval_over_them():
    v, u = _near("llama")
    both = krs.account(v, u, IDS, points=3, **FAST)
    one = krs.account(v, u, IDS[:1], answers=ANSWERS[:1], points=3, n_tokens=3, progress=False)
    assert_same(both.parts[0] * 5 / 3, one.parts[0])  # of 5 scored tokens, 3 are the first prompt's
    low, high = both.interval()
    assert (low <= both.by_component + 1e-12).all()
    assert (high >= both.by_component - 1e-12).all()
    assert list(low.index) == list(both.by_component.index)
    with pytest.raises(KrsError, match="needs at least two"):
        one.interval()
    with pytest.raises(KrsError, match="level=2.0"):
        both.interval(2.0)


def test_tied_heads_count_once_and_one_that_only_one_model_ties_counts_apart():
    v, u = _near("llama")
    tied = krs.account(v, u, IDS, points=8, **FAST)
    assert tied.tied
    assert "unembedding" not in tied.by_component.index
    u.lm_head.weight = torch.nn.Parameter(1.02 * v.lm_head.weight.detach())
    apart = krs.account(v, u, IDS, points=8, **FAST)
    assert not apart.tied
    assert apart.error < 1e-3
    assert apart.by_component["unembedding"] > 0


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_an_adapter_counts_as_its_merged_self(kind):
    v = build("llama", tie_word_embeddings=False).double()
    u = adapted(v, kind).double()
    before = state(u)
    with _silence():
        found = krs.account(v, u, IDS, points=4, **FAST)
        merged = krs.account(v, merged_by_peft(u), IDS, points=4, **FAST)
        turned = krs.account(u, v, IDS, points=4, **FAST)
    assert_same(found.by_component.to_numpy(), merged.by_component.to_numpy())
    assert turned.by_component["keys"] == 0 < turned.by_component["value_vectors"]
    assert found.by_component["keys"] == 0
    assert same_state(u, before)


def test_a_bias_that_only_an_adapter_adds_is_part_of_the_account():
    u = build("llama", tie_word_embeddings=False).double()
    v = adapted(u, "lora-bias").double()
    with _silence():
        found = krs.account(v, u, IDS, points=12, **FAST)
    assert found.by_component["biases"] != 0
    assert found.error < 0.01
    with pytest.raises(KrsError, match="merge the adapters yourself"):
        krs.account(u, v, IDS, **FAST)


class _silence:  # noqa: N801
    def __enter__(self):
        import warnings

        self.kept = warnings.catch_warnings()
        self.kept.__enter__()
        warnings.simplefilter("ignore", KrsWarning)

    def __exit__(self, *stopped):
        self.kept.__exit__(*stopped)


def test_packed_weights_count_as_what_they_are_unpacked_to():
    v, u = _near("llama")
    plain = copy.deepcopy(v), copy.deepcopy(u)
    for model, other in zip((v, u), plain, strict=True):
        for layer, unpacked in zip(model.model.layers, other.model.layers, strict=True):
            layer.mlp.down_proj = Packed(layer.mlp.down_proj).eval()
            unpacked.mlp.down_proj.weight = torch.nn.Parameter(layer.mlp.down_proj.unpacked())
    found, wanted = (krs.account(*models, IDS, points=3, **FAST) for models in ((v, u), plain))
    assert_same(found.units("value_vectors", 2).to_numpy(), wanted.units("value_vectors", 2).to_numpy())


def test_narrow_models_are_walked_in_fp32_and_say_so():
    v, u = pair("llama")
    v, u = v.bfloat16(), u.bfloat16()
    found = krs.account(v, u, IDS, points=8, **FAST)
    wide = krs.account(v.float(), u.float(), IDS, points=8, **FAST)
    np.testing.assert_allclose(found.by_component, wide.by_component, rtol=1e-4, atol=1e-6)
    assert "the models are bfloat16, the line was walked in float32" in repr(found)


def test_what_is_no_difference_of_weights_is_refused(as_a_user):
    v, u = _near("llama")
    handle = u.model.layers[2].register_forward_hook(lambda module, args, output: 1.5 * output)
    with pytest.raises(KrsError, match="does not say what vanilla says .* unlearned has a hook at 'model.layers.2'"):
        krs.account(v, u, IDS, **FAST)
    handle.remove()
    with torch.no_grad():
        u.model.layers[1].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(KrsError, match="the logits of unlearned are NaN or infinite on prompt 0"):
        krs.account(v, u, IDS, **FAST)
    for points in (0, 2.5, True, 1000):
        with pytest.raises(KrsError, match="give a whole number from 1 to 100"):
            krs.account(v, build("llama", 1).double(), IDS, points=points, **FAST)


def test_too_few_points_are_warned_of():
    v, u = build("llama").double(), build("llama", seed=3).double()
    with pytest.warns(KrsWarning, match="the parts of the target prompts sum to .* give more than points=1"):
        found = krs.account(v, u, IDS, points=1, **FAST)
    assert found.notes[-1].startswith("the parts of the target prompts sum to")


def test_ctrl_c_and_what_surrounds_the_call_leave_the_models(monkeypatch):
    v, u = pair("llama")
    before, calls = (state(v), state(u)), []
    from krs.metrics import weight_path

    whole = weight_path.WeightPath.logits

    def stopped(self, prompt):
        calls.append(1)
        if len(calls) == 7:  # the first backward passes have been made
            signal.raise_signal(signal.SIGINT)
        return whole(self, prompt)

    monkeypatch.setattr(weight_path.WeightPath, "logits", stopped)
    with pytest.raises(KeyboardInterrupt):
        krs.account(v, u, IDS, **FAST)
    monkeypatch.undo()
    assert same_state(v, before[0])
    assert same_state(u, before[1])
    assert all(p.grad is None and p.requires_grad for p in u.parameters())
    plain = krs.account(v, u, IDS, points=6, **FAST)
    for surrounding in (torch.inference_mode(), torch.no_grad(), torch.autocast("cpu", torch.bfloat16)):
        with surrounding:
            again = krs.account(v, u, IDS, points=6, **FAST)
        np.testing.assert_array_equal(again.parts, plain.parts)


def test_saved_and_loaded(tmp_path):
    v, u = _near("llama")
    found = krs.account(v, u, IDS, unrelated=IDS[:1], points=2, **FAST)
    file = found.save(tmp_path / "a.krs")
    again = load_account(file)
    assert repr(again) == repr(found)
    assert again.token_ids == found.token_ids
    np.testing.assert_array_equal(again.units("keys", 2), found.units("keys", 2))
    with pytest.raises(KrsError, match="exists already: choose another name"):
        found.save(file)
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(KrsError, match="is not an account that krs saved"):
        load_account(file)


def test_a_file_with_something_odd_in_it_is_refused(tmp_path, as_a_user):
    v, u = _near("llama")
    file = krs.account(v, u, IDS, unrelated=IDS[:1], points=2, **FAST).save(tmp_path / "a.krs")
    with safe_open(file, framework="numpy") as opened:
        header = json.loads(opened.metadata()["krs.account"])
        arrays = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118

    def refused(header, arrays):
        save_file(arrays, file, metadata={"krs.account": json.dumps(header)})
        with pytest.raises(KrsError, match="is not an account that krs saved"):
            load_account(file)

    for name in header:
        if name != "unrelated":
            refused({k: v for k, v in header.items() if k != name}, arrays)
        for value in ("x", [3], 3.5) if name == "unrelated" else ({"a": 1} if name != "provenance" else 3, "x"):
            refused(header | {name: value}, arrays)
    for name, array in arrays.items():
        refused(header, {k: v for k, v in arrays.items() if k != name})
        refused(header, arrays | {name: np.ascontiguousarray(array[:-1])})
        refused(header, arrays | {name: array.astype(np.float32)})


def test_the_picture_has_a_row_a_component():
    v, u = _near("llama", tie_word_embeddings=False)
    axes = krs.account(v, u, IDS, points=2, **FAST).plot()
    assert [t.get_text() for t in axes.get_xticklabels()] == ["0", "1", "2", "3", "outside"]
    assert {"value vectors", "norms", "unembedding"} <= {t.get_text() for t in axes.get_yticklabels()}


def test_restoring_the_largest_parts_recovers_more_than_random_and_most_moved_ones(as_a_user):
    """Half of the moved value vectors hardly act: their neurons are all but silent, and their weights moved most."""
    v = build("llama").double()
    u = copy.deepcopy(v)
    drawn = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for layer, other in zip(u.model.layers, v.model.layers, strict=True):
            for model in (layer, other):
                model.mlp.up_proj.weight[12:] *= 1e-3
            size = torch.where(torch.arange(24) < 12, 0.02, 0.05).double()
            move = torch.randn(layer.mlp.down_proj.weight.shape, generator=drawn, dtype=torch.float64)
            layer.mlp.down_proj.weight += size * move
    found = krs.account(v, u, IDS, points=4, **FAST)
    table = check_account(found, v, u, shares=[0.1, 0.25])
    assert (table.account > table.random).all()
    assert (table.account > table.change + 0.1).all()
    assert check_account(found, v, u, shares=[1.0]).loc[1.0].to_list() == pytest.approx([1, 1, 1])
    layers = check_account(found, v, u, of="layers", shares=[0.25])
    assert layers.account.iloc[0] >= layers.random.iloc[0]
    with pytest.raises(KrsError, match="the account's own is"):
        check_account(found, v, perturbed(u), shares=[0.1])
    with pytest.raises(KrsError, match="shares= has 2.0"):
        check_account(found, v, u, shares=[2.0])
    with pytest.raises(KrsError, match="of='heads'"):
        check_account(found, v, u, of="heads")


def test_experts_are_units():
    v, u = pair("moe")
    with _silence():
        found = krs.account(v, u, IDS, points=2, **FAST)
    assert list(found.units("experts", 1).index) == [0, 1]
    assert "router" in found.by_component.index
    with pytest.raises(KrsError, match="no value vectors to restore"):
        check_account(found, v, u)


def test_rows_that_only_one_model_has_are_left_out():
    v, u = _near("llama", tie_word_embeddings=False)
    wanted = krs.account(v, u, IDS, points=2, **FAST)
    u.resize_token_embeddings(64, mean_resizing=False)
    u.eval()
    with pytest.raises(KrsError, match="vocabulary='shared'"):
        krs.account(v, u, IDS, points=2, **FAST)
    found = krs.account(v, u, IDS, points=2, vocabulary="shared", **FAST)
    assert_same(found.parts, wanted.parts)
