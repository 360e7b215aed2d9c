"""The wavefront engine against its plain twin, and every case that it must not do."""

import copy
import dataclasses
import signal
import types

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import krs
from krs import ATTN_OUT, MLP_COEF, NORMS, VALUE_VECTORS, KrsError, windows
from krs.generation.greedy import greedy
from krs.hooks import ActivationPoint, WeightPoint, anatomy, families, family_of, patched, register_family
from krs.hooks.overrides import override_forward
from krs.metrics.measures import LOGIT_MSE
from krs.prompts import next_token_batch
from krs.restore.execution import write
from krs.restore.job import Chunk, Job, NotExactError
from krs.restore.losses import Losses
from krs.restore.plain import PlainEngine
from krs.restore.plan import Plan
from krs.restore.wave import attention as wave_attention
from krs.restore.wave import heads, passes
from krs.restore.wave.attention import can_pack
from krs.restore.wave.heads import Heads
from krs.restore.wave.runner import LayerwiseRunner
from krs.restore.wavefront import WavefrontEngine
from tests.noise import assert_rounds_alike, assert_same, float64_throughout
from tests.tiny import FAMILIES, build, exact_pair, pair, perturbed, same_state, state

plain, wavefront = PlainEngine(), WavefrontEngine()
PROMPTS = ((5, 9, 11), (5, 9, 22, 8, 40, 2), (13,), (5, 9, 11, 4))
SETTINGS = [
    MLP_COEF,
    VALUE_VECTORS,
    ATTN_OUT,
    MLP_COEF + ATTN_OUT,
    MLP_COEF + VALUE_VECTORS,
    VALUE_VECTORS + ATTN_OUT,
    MLP_COEF + VALUE_VECTORS + ATTN_OUT,
]
_PAIRS: dict = {}


def _pair(name):
    if name not in _PAIRS:
        _PAIRS[name] = exact_pair(name)
    return _PAIRS[name]


def _run(engine, v, u, plan, prompts=PROMPTS, budget=2**30, n_tokens=6, answers=None):
    v, u = anatomy(v), anatomy(u)
    batch = next_token_batch(prompts, answers or greedy(v.model, prompts, n_tokens, progress=False))
    losses = Losses.empty(plan, batch)
    job = Job(plan, u, v, v, batch, (LOGIT_MSE,), budget, np.zeros((len(plan), len(batch)), dtype=bool))
    for step in engine.run(job):
        if isinstance(step, Chunk):
            write(step, job, losses)
    return losses


def _scores(losses):
    m = losses.mask
    return 1 - losses.restored[:, m].mean(1) / losses.baseline[m].mean()


def _compare(v, u, plan, **options):
    """In float64, where the engines agree to its rounding."""
    with float64_throughout(None if v.config._attn_implementation == "eager" else v.config.model_type):
        ours, twin = _run(wavefront, v, u, plan, **options), _run(plain, v, u, plan, **options)
    assert_same(_scores(ours), _scores(twin))
    assert_same(ours.power[ours.mask], twin.power[twin.mask])
    assert ours.complete
    return ours


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    name=st.sampled_from(sorted(FAMILIES)),
    chosen=st.sets(st.sampled_from(range(len(SETTINGS))), min_size=1, max_size=3),
    listed=st.lists(st.sets(st.integers(0, 3), min_size=1), min_size=1, max_size=4, unique_by=frozenset),
    positions=st.sampled_from([None, None, None, "prompt", "answer", (-1, 0)]),
    chunk=st.sampled_from([1, 40, 3200]),
    budget=st.sampled_from([1, 2**14, 2**30]),
    long=st.booleans(),
)
def test_equals_the_plain_engine_for_any_plan_family_chunk_and_budget(
    name, chosen, listed, positions, chunk, budget, long
):
    v, u = _pair(name)
    plan = Plan.make([SETTINGS[i] for i in sorted(chosen)], windows.of(listed), n_layers=4, positions=positions)
    with pytest.MonkeyPatch.context() as patch:
        if long:
            _take_for_long(patch)
        patch.setattr(passes, "_CHUNK_TOKENS", {"cpu": chunk, "cuda": chunk})
        _compare(v, u, plan, budget=budget)


def _take_for_long(patch, tokens=1):
    """Any pass gives numbers on the way, once there are rows of so many tokens with nothing left to restore."""
    patch.setattr(passes, "_CHUNK_TOKENS", {"cpu": tokens, "cuda": tokens})
    patch.setattr(passes, "_LONG", 0)
    patch.setattr(passes, "_SHARE", 0)


_ROOM = [*((name, True) for name in sorted(FAMILIES)), *((name, False) for name in ("llama", "gpt2", "gptj", "olmo2"))]


@pytest.mark.parametrize(("name", "room"), _ROOM)
def test_a_long_pass_gives_numbers_on_the_way_and_they_are_the_plain_engines(name, room, monkeypatch):
    _take_for_long(monkeypatch)
    if not room:
        monkeypatch.setattr(passes.Pass, "_can_keep", lambda *_: False)
    ends = ["embedding", "embedding+attn_out"] if name == "llama" else []
    plan = Plan.make([*SETTINGS[:4], *ends], windows.sliding(2), n_layers=4)
    chunks = []
    real = wavefront.run
    engine = types.SimpleNamespace(run=lambda job: (chunks.append(s) or s for s in real(job)))
    v, u = _pair(name)
    before = state(v), state(u)
    with float64_throughout(v.config.model_type):
        ours, twin = (_run(e, v, u, plan) for e in (engine, plain))
    assert_same(_scores(ours), _scores(twin))
    assert_same(ours.baseline[ours.mask], twin.baseline[twin.mask])
    assert_same(ours.power[ours.mask], twin.power[twin.mask])
    found = [c for c in chunks if isinstance(c, Chunk)]
    every = [r for chunk in found for r in chunk.restorations]
    assert len(found) > 2
    assert sorted(every) == list(range(len(plan)))  # each of them once
    steps = sum(s.steps for s in chunks if not isinstance(s, Chunk))
    assert steps == wavefront.steps(_job(v, u, plan))
    assert same_state(v, before[0])
    assert same_state(u, before[1])


def test_nothing_is_given_on_the_way_before_the_pass_has_checked_itself(monkeypatch):
    """A restoration that is wrong in the pass alone is found before any of its numbers are out."""
    _take_for_long(monkeypatch)
    real = passes.Pass._to_the_end
    monkeypatch.setattr(passes.Pass, "_to_the_end", lambda *args: real(*args) * 1.001)
    v, u = _pair("llama")
    given = []
    steps = wavefront.run(_job(v, u, Plan.make(None, windows.sliding(2), n_layers=4)))
    with pytest.raises(NotExactError, match="restored is not what hooks make of a prompt by itself"):
        given.extend(step for step in steps)
    assert given
    assert not any(isinstance(step, Chunk) for step in given)


def test_a_short_pass_and_one_in_which_it_would_cost_much_give_their_numbers_in_the_end(monkeypatch):
    v, u = _pair("llama")

    def chunks(*settings):
        found = wavefront.run(_job(v, u, Plan.make(list(settings) or None, windows.sliding(2), n_layers=4)))
        return sum(isinstance(step, Chunk) for step in found)

    assert chunks() == 1  # short
    _take_for_long(monkeypatch)
    assert chunks() > 2
    assert chunks("unembedding") == 1  # nothing to move on
    monkeypatch.setattr(passes, "_SHARE", 25)
    assert chunks() > 2  # what both models give is kept
    monkeypatch.setattr(passes.Pass, "_can_keep", lambda *_: False)
    assert chunks() == 1  # both models once more through a layer, of four: not worth it


@pytest.mark.parametrize(("budget", "kept"), [(2**30, True), (180_000, False)])
def test_what_models_give_ahead_of_rows_is_kept_where_there_is_room(budget, kept, monkeypatch):
    _take_for_long(monkeypatch)
    v, u = _pair("llama")
    calls = []
    real = passes.Pass._step
    monkeypatch.setattr(passes.Pass, "_step", lambda self, n, wanted: (calls.append(n), real(self, n, wanted))[1])
    plan = Plan.make(None, windows.sliding(2), n_layers=4)
    assert sum(isinstance(step, Chunk) for step in wavefront.run(_job(v, u, plan, budget=budget))) > 2
    assert (sorted(calls) == [0, 1, 2, 3]) == kept


def _job(v, u, plan, prompts=PROMPTS, budget=2**30):
    v, u = anatomy(v), anatomy(u)
    batch = next_token_batch(prompts, greedy(v.model, prompts, 6, progress=False))
    return Job(plan, u, v, v, batch, (LOGIT_MSE,), budget, np.zeros((len(plan), len(batch)), dtype=bool))


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_every_family_every_union_of_points(name):
    v, u = _pair(name)
    before = state(v), state(u)
    _compare(v, u, Plan.make(SETTINGS, windows.of([[0, 1], [2], [1, 3]]), n_layers=4))
    assert same_state(v, before[0])
    assert same_state(u, before[1])


@pytest.mark.parametrize("shape", [windows.up_to_layer(), windows.from_layer_on(), windows.sliding(2)])
@pytest.mark.parametrize("name", ["llama", "gptj", "opt"])
def test_windows_that_share_layers(name, shape):
    _compare(*_pair(name), Plan.make(SETTINGS, shape, n_layers=4))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gptj", "olmo2", "gpt_neox"])
def test_half_precision(name, dtype):
    v, u = (copy.deepcopy(m).to(dtype) for m in _pair(name))
    plan = Plan.make(None, 3, n_layers=4)
    answers = greedy(v, PROMPTS, 6, progress=False)
    ours, twin = (_run(engine, v, u, plan, answers=answers) for engine in (wavefront, plain))
    with float64_throughout(name):
        exact = _run(plain, v.double(), u.double(), plan, answers=answers)
    assert_rounds_alike(_scores(ours), _scores(exact), [_scores(twin)])
    assert_rounds_alike(ours.power[ours.mask], exact.power[exact.mask], [twin.power[twin.mask]])


def _off_by_a_twentieth(value):
    return (value[0] * 1.05, *value[1:]) if isinstance(value, tuple) else value * 1.05


@pytest.mark.parametrize(
    ("name", "dtype"),  # where a norm follows the attention, a factor is no error at all
    [
        ("llama", torch.float16),
        *((name, torch.bfloat16) for name in ("llama", "gpt2")),
        *(pytest.param(name, torch.bfloat16, marks=pytest.mark.long) for name in ("qwen3", "gpt_neox", "mistral")),
    ],
)
def test_attention_that_is_off_by_a_twentieth_is_found_in_half_precision(name, dtype, monkeypatch):
    """A fixed bound that rounding of half precision fits in hides it; noise measured on the spot does not."""
    v, u = (copy.deepcopy(m).to(dtype) for m in _pair(name))
    options = {"settings": ["mlp_coef", "value_vectors"], "windows": 3, "n_tokens": 6, "progress": False}
    right = krs.sweep(v, u, list(PROMPTS), engine="wavefront", **options)  # nothing is found in what is right
    layouts, real = [], passes.Pass.__init__

    def spy(self, job, batch, layout, *rest):
        layouts.append("padded" if layout.tree is None else "packed")
        real(self, job, batch, layout, *rest)

    monkeypatch.setattr(passes.Pass, "__init__", spy)
    with monkeypatch.context() as packed:  # over the tree of tokens alone
        own = wave_attention._attend
        packed.setattr(wave_attention, "_attend", lambda *args: own(*args) * 1.05)
        found = krs.sweep(v, u, list(PROMPTS), **options)
        assert layouts == ["packed", "padded"]
        assert found.provenance["engine"] == "wavefront"
    layouts.clear()
    runners, pair_of = [], passes._with_reference
    monkeypatch.setattr(passes, "_with_reference", lambda *a: [runners.append(r := pair_of(*a)), r][1])
    call = LayerwiseRunner.call

    def broken(self, layer, states, rows=1):
        if not any(self is runner for runner, _ in runners):
            return call(self, layer, states, rows)
        (path,) = self.body.role_paths("attn_out_proj", layer)
        attention = self.body.layers[layer].get_submodule(path.rpartition(".")[0])
        with override_forward({attention: lambda own, *a, **k: _off_by_a_twentieth(own(*a, **k))}):
            return call(self, layer, states, rows)

    monkeypatch.setattr(LayerwiseRunner, "call", broken)
    found = krs.sweep(v, u, list(PROMPTS), **options)
    assert layouts == ["packed", "padded"]
    assert found.provenance["engine"] == "plain"
    assert "are not those of a prompt by itself" in found.provenance["engine_note"]
    with pytest.raises(KrsError, match="engine='wavefront' is not exact here: states after layer"):
        krs.sweep(v, u, list(PROMPTS), engine="wavefront", **options)
    monkeypatch.undo()
    assert right.provenance["engine"] == "wavefront"
    plain_one = krs.sweep(v, u, list(PROMPTS), engine="plain", **options)
    np.testing.assert_array_equal(found.losses.restored, plain_one.losses.restored)


def test_families_with_attention_of_their_own_run_padded():
    packs = {name: can_pack(build(name).get_submodule(family_of(FAMILIES[name][0]).layers)[0]) for name in FAMILIES}
    own = {name for name, can in packs.items() if not can} - {"gptj"}  # which takes the interface from 5.24 on
    assert own == {"gpt_neo", "falcon", "falcon-sequential-alibi", "bloom", "mpt"}


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_models_attention_function_is_theirs_again(attention):
    v, u = (build("llama", seed=s, attn_implementation=attention).double() for s in (0, 1))
    _compare(v, u, Plan.make(None, 3, n_layers=4))
    assert v.config._attn_implementation == u.config._attn_implementation == attention
    assert not any("forward" in m.__dict__ for model in (v, u) for m in model.modules())


def test_soft_capped_logits_are_compared_as_logits():
    v, u = _pair("gemma2")
    heads = Heads(anatomy(u), anatomy(v))
    assert not heads.linear
    assert Heads(anatomy(_pair("cohere")[1]), anatomy(_pair("cohere")[0])).linear


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("name", "option", "value"), [("cohere", "logit_scale", 0.0627), ("granite", "logits_scaling", 3)]
)
def test_the_scale_of_logits_is_the_configurations_whatever_the_models_dtype(name, option, value, dtype):
    """A factor that is asked of the model in bf16 would be the one that bf16 has a number for: 0.2 % off."""
    model = build(name, **{option: value}).to(dtype)
    wanted = value if name == "cohere" else 1 / value
    assert abs(heads._scale(anatomy(model)) / wanted - 1) < 1e-6


def test_further_points_of_both_kinds():
    v, u = _pair("llama")
    mlp_out = ActivationPoint("mlp_out", role="mlp_out_proj", label="", side="output")
    heads = ActivationPoint("heads", role="attn_out_proj", label="", side="input")
    attn_weight = WeightPoint("attn_weight", role="attn_out_proj", label="")
    given = [mlp_out, heads, attn_weight, heads + attn_weight, mlp_out + MLP_COEF, heads + mlp_out, heads + ATTN_OUT]
    _compare(v, u, Plan.make(given, windows.of([[0, 1], [3]]), n_layers=4))


@pytest.mark.parametrize("name", ["llama", "gpt2", "olmo2"])
def test_some_units_of_norms(name):
    v, u = _pair(name)
    _compare(v, u, Plan.make([NORMS.units(2, 5), NORMS.units(3) + MLP_COEF], windows.of([[0, 1], [3]]), n_layers=4))


@pytest.mark.parametrize(
    ("name", "roles"),
    [
        ("llama", {"mlp_in": ("mlp.gate_proj", "mlp.up_proj"), "attn_in": ("self_attn.q_proj", "self_attn.k_proj")}),
        ("opt", {"mlp_in": "fc1", "attn_in": ("self_attn.q_proj", "self_attn.k_proj")}),
    ],
)
def test_weights_before_the_values_that_they_make(name, roles, monkeypatch):
    monkeypatch.setattr(families, "BY_TYPE", families.BY_TYPE.copy())
    family = family_of(name)
    keys = WeightPoint("keys", role="mlp_in", label="")
    queries = WeightPoint("qkv", role="attn_in", label="")
    register_family(dataclasses.replace(family, roles={**family.roles, **roles}), replace=True)
    settings = [keys, queries, keys + VALUE_VECTORS, queries + MLP_COEF, keys + ATTN_OUT]
    _compare(*_pair(name), Plan.make(settings, 3, n_layers=4))


def test_mixture_of_experts_by_attention():
    v = build("moe", experts_implementation="eager").double()
    u = perturbed(v)
    _compare(v, u, Plan.make("attn_out", 3, n_layers=4))


# What it must not do


def _refused(v, u, match, **options):
    plan = Plan.make(["mlp_coef", "attn_out"], 3, n_layers=4)
    with pytest.raises(NotExactError, match=match):
        _run(wavefront, v, u, plan)
    result = krs.sweep(v, u, list(PROMPTS), settings=plan.settings, windows=3, n_tokens=6, progress=False)
    assert result.provenance["engine"] == "plain"
    assert "not the wavefront engine" in result.provenance["engine_note"]
    np.testing.assert_array_equal(result.losses.restored, _run(plain, v, u, plan).restored)
    with pytest.raises(KrsError, match="engine='wavefront' is not exact here"):
        krs.sweep(v, u, list(PROMPTS), windows=3, n_tokens=6, progress=False, engine="wavefront")


def test_hooks_of_the_caller_go_to_the_plain_engine():
    v, u = pair("llama")
    with patched(u, ATTN_OUT.at(0).map(lambda a: 0.5 * a)):
        _refused(v, u, "there are hooks on")


def test_a_decoder_with_more_behind_its_norm():
    v, u = pair("opt", word_embed_proj_dim=8)
    _refused(v, u, "does more than call its layers one after the other and a final norm")


def test_a_model_without_its_familys_final_norm():
    v, u = pair("opt", do_layer_norm_before=False)
    _refused(v, u, "it has no final norm")


def test_a_model_that_treats_a_prompt_in_a_batch_otherwise():
    v, u = pair("gptj")
    for model in (v, u):
        layer = model.transformer.h[2]
        own = layer.forward
        layer.forward = lambda x, *a, own=own, **k: own(x * (1 + 0.01 * len(x)), *a, **k)
    plan = Plan.make("attn_out", 3, n_layers=4)
    with pytest.raises(NotExactError, match="states after layer 2 are not those of a prompt by itself"):
        _run(wavefront, v, u, plan)


def test_a_layer_that_uses_more_than_the_attentions_output_is_not_skipped():
    v, u = exact_pair("llama")

    def forward(self, hidden_states, position_embeddings=None, attention_mask=None, **more):
        out, weights = type(self).forward(self, hidden_states, position_embeddings, attention_mask, **more)
        self.seen = out.abs().mean(dim=-1, keepdim=True)
        return out, weights

    def layer_forward(self, hidden_states, *args, **more):
        return (
            type(self).forward(self, hidden_states, *args, **more) + self.self_attn.o_proj.weight.mean() * hidden_states
        )

    for model in (v, u):
        model.model.layers[1].forward = types.MethodType(layer_forward, model.model.layers[1])
        model.model.layers[2].self_attn.forward = types.MethodType(forward, model.model.layers[2].self_attn)
    _compare(v, u, Plan.make(SETTINGS, 3, n_layers=4))


def test_attention_that_asks_for_what_packed_attention_does_not_do_is_padded(monkeypatch):
    v, u = exact_pair("llama")
    seen = []
    real = passes.Pass.__init__

    def spy(self, job, batch, layout, *rest):
        seen.append(layout.tree is None)
        real(self, job, batch, layout, *rest)

    monkeypatch.setattr(passes.Pass, "__init__", spy)
    for model in (v, u):
        for layer in model.model.layers:
            own = layer.self_attn.forward
            layer.self_attn.forward = lambda *a, own=own, **k: own(*a, s_aux=torch.zeros(2), **k)
    _compare(v, u, Plan.make(None, 3, n_layers=4))
    assert seen == [False, True]


# What must be left as it was, or gone on from


def test_out_of_memory_halves_the_chunk_and_goes_on(monkeypatch):
    v, u = _pair("llama")
    plan = Plan.make(None, 1, n_layers=4)
    expected = _run(wavefront, v, u, plan)
    real, rows_seen = LayerwiseRunner.call, []

    def short(self, layer, states, rows=1):
        if rows > 2:
            raise torch.OutOfMemoryError("out of memory")
        rows_seen.append(rows)
        return real(self, layer, states, rows)

    monkeypatch.setattr(LayerwiseRunner, "call", short)
    found = _run(wavefront, v, u, plan)
    assert max(rows_seen) == 2
    assert_same(found.restored, expected.restored)

    def none(self, layer, states, rows=1):
        if layer == 2 and rows == 1 and self.layout.tree is not None and states is not self.states:
            raise torch.OutOfMemoryError("out of memory")
        return short(self, layer, states, rows)

    before = state(u)
    monkeypatch.setattr(LayerwiseRunner, "call", none)
    with pytest.raises(torch.OutOfMemoryError):
        _run(wavefront, v, u, plan)
    assert same_state(u, before)
    assert not any("forward" in m.__dict__ for m in u.modules())


@pytest.mark.parametrize("at", [3, 11, 25])
def test_ctrl_c_leaves_the_models_as_they_were_and_keeps_finished_prompts(at, tmp_path, monkeypatch):
    v, u = pair("llama")
    before = state(v), state(u)
    options = {"windows": 3, "n_tokens": 6, "progress": False, "engine": "wavefront", "memory": 1}
    expected = krs.sweep(v, u, list(PROMPTS), **options)
    real, calls = LayerwiseRunner.call, []

    def interrupted(self, *args):
        calls.append(1)
        if len(calls) == 200 + at:
            signal.raise_signal(signal.SIGINT)
        return real(self, *args)

    monkeypatch.setattr(LayerwiseRunner, "call", interrupted)
    file = tmp_path / "part.krs"
    with pytest.raises(KeyboardInterrupt) as stop:
        krs.sweep(v, u, list(PROMPTS), checkpoint=file, **options)
    assert same_state(v, before[0])
    assert same_state(u, before[1])
    for model in (v, u):
        assert model.config._attn_implementation == "sdpa"
        assert not any("forward" in m.__dict__ or m._forward_hooks for m in model.modules())
    finished = np.isfinite(stop.value.partial.losses.restored).all(axis=(0, 2))
    assert 0 < finished.sum() < len(PROMPTS)
    resumed = krs.sweep(v, u, list(PROMPTS), checkpoint=file, **options)
    np.testing.assert_array_equal(resumed.losses.restored, expected.losses.restored)


def test_a_checkpoint_of_the_plain_engine_is_gone_on_from(tmp_path, monkeypatch):
    v, u = _pair("llama")
    expected = krs.sweep(v, u, list(PROMPTS), windows=3, n_tokens=6, progress=False)
    part = krs.sweep(v, u, list(PROMPTS), windows=3, n_tokens=6, progress=False, engine="plain")
    part.losses.restored[5:] = np.nan
    part.save(tmp_path / "part.krs")
    resumed = krs.sweep(v, u, list(PROMPTS), windows=3, n_tokens=6, progress=False, checkpoint=tmp_path / "part.krs")
    assert (resumed.losses.restored[:5][:, part.losses.mask] == part.losses.restored[:5][:, part.losses.mask]).all()
    assert_same(resumed.krs, expected.krs)


def test_given_answers_are_scored():
    v, u = _pair("llama")
    own = krs.sweep(v, u, list(PROMPTS), windows=3, n_tokens=6, progress=False)
    again = krs.sweep(v, u, list(PROMPTS), windows=3, n_tokens=6, progress=False, answers=own.answers)
    np.testing.assert_array_equal(own.losses.restored, again.losses.restored)
    assert again.provenance["answers"] == "given"
    other = krs.sweep(v, u, list(PROMPTS), windows=3, n_tokens=2, progress=False, answers=[[7, 7, 7]] * 4)
    assert other.losses.mask.sum() == 8


def test_a_linear_layer_is_still_a_linear_layer():
    _, u = _pair("llama")
    assert type(u.model.layers[0].mlp.down_proj) is nn.Linear
