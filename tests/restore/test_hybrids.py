"""Models in which attention and other token mixers take turns: points, engines, padding, packing, answers."""

import functools
import random

import numpy as np
import pytest
import torch

import krs
from krs import (
    ATTN_ADDED,
    ATTN_KEY,
    ATTN_OUT,
    ATTN_QUERY,
    ATTN_VALUE,
    ATTN_WEIGHTS,
    EXPERTS,
    HEAD_OUT,
    KEYS,
    MLP_ADDED,
    MLP_COEF,
    MLP_OUT,
    MOE_OUT,
    NORMS,
    RESID,
    RESID_PRE,
    ROUTER,
    VALUE_VECTORS,
    WEIGHTS,
    KrsError,
    windows,
)
from krs.generation import batching
from krs.hooks import ActivationPoint, Family, Setting, anatomy, families, patched, record, register_family, self_check
from krs.restore.wave import passes
from tests import by_hand
from tests.noise import assert_same, float64_throughout
from tests.restore.once import checked_once  # noqa: F401
from tests.tiny import HYBRIDS, build, exact_pair, same_state, state

PROMPTS = [[5, 9, 11], [7, 3, 22, 8, 40, 2], [13]]
ALIKE = [[7, 3, 22, 8, 40, 2], [7, 3, 9]]
"""The longer one first, where packing puts it at the very beginning."""

DENSE = ["lfm2", "olmo_hybrid", "qwen3_5"]
MIXTURES = ["qwen3_5_moe", "qwen3_next"]
FEW = ["lfm2", "olmo_hybrid", "qwen3_next"]
MORE = [pytest.param(name, marks=pytest.mark.long) for name in sorted({*HYBRIDS} - {*FEW})]

pytestmark = pytest.mark.filterwarnings("ignore:.*answers are empty")  # random models may say EOS at once


@functools.cache
def _pair(name):
    return exact_pair(name, **({"experts_implementation": "eager"} if name in MIXTURES else {}))


def _sweep(name, prompts=PROMPTS, **options):
    with float64_throughout(name):
        return krs.sweep(*_pair(name), prompts, **({"n_tokens": 4, "progress": False} | options))


def _agree(name, settings, listed, **options):
    """Both engines, the fast one without falling back; what they both say."""
    given = {"settings": settings, "windows": windows.of(listed)} | options
    ours, twin = (_sweep(name, engine=engine, **given) for engine in ("wavefront", "plain"))
    assert_same(ours.krs.to_numpy(), twin.krs.to_numpy())
    assert np.abs(twin.krs.to_numpy()).min() > 1e-6
    return twin


@pytest.mark.usefixtures("checked_once")
@pytest.mark.parametrize("name", [*FEW, *MORE])
@pytest.mark.parametrize("positions", [None, pytest.param("prompt", marks=pytest.mark.long)])
def test_every_point_through_both_engines(name, positions):
    before = [state(m) for m in _pair(name)]
    everywhere = [ATTN_OUT, RESID, RESID_PRE, MLP_OUT, ATTN_ADDED, MLP_ADDED, MLP_OUT + ATTN_OUT]
    weights = [NORMS, ATTN_WEIGHTS, ATTN_WEIGHTS + MLP_OUT]
    _agree(name, [*everywhere, *(weights if positions is None else ())], [[0], [1, 2], [3]], positions=positions)
    heads = [HEAD_OUT, HEAD_OUT.heads(1), ATTN_QUERY, ATTN_QUERY.heads(1), ATTN_KEY + ATTN_VALUE]
    _agree(name, heads, [[1], [1, 3]], positions=positions)
    if name != "qwen3_5_moe":
        coefficients = [MLP_COEF, MLP_COEF + ATTN_OUT, MLP_COEF.units(3, 5)]
        vectors = [VALUE_VECTORS, VALUE_VECTORS + ATTN_OUT, KEYS]
        _agree(name, [*coefficients, *(vectors if positions is None else ())], [[0], [0, 1]], positions=positions)
    if name in MIXTURES:
        _agree(name, [MOE_OUT, *([EXPERTS, ROUTER] if positions is None else ())], [[2], [2, 3]], positions=positions)
    assert all(same_state(m, was) for m, was in zip(_pair(name), before, strict=True))


@functools.cache
def _by_hand(name, settings, listed):
    with float64_throughout(name):
        return by_hand.sweep(*_pair(name), PROMPTS, list(settings), [list(w) for w in listed], n_tokens=4)


@pytest.mark.usefixtures("checked_once")
@pytest.mark.parametrize("engine", ["plain", "wavefront"])
@pytest.mark.parametrize("name", ["lfm2", "olmo_hybrid", pytest.param("qwen3_5", marks=pytest.mark.long)])
def test_equals_hooks_written_out_by_hand_prompt_by_prompt(name, engine):
    """By hand there is no padding: batched, linear attention and convolutions must not have seen any."""
    settings, listed = ("mlp_coef", "value_vectors", "attn_out", "mlp_coef+attn_out"), ((0,), (1, 2), (0, 1, 2, 3))
    found = _sweep(name, settings=list(settings), windows=windows.of(listed), engine=engine)
    assert found.provenance["engine"] == engine
    assert "batching" not in found.provenance
    assert_same(found.krs.to_numpy().T, _by_hand(name, settings, listed))


@pytest.mark.parametrize("name", [*FEW, *MORE])
def test_self_check_and_what_is_added(name):
    model, _ = _pair(name)
    body = anatomy(model)
    dense = [layer for layer in range(4) if body.has_role("mlp_out_proj", layer)]
    with float64_throughout(name), torch.no_grad():
        if dense:
            assert self_check(model, every_layer=True, layers=dense).noop == 0
        assert self_check(model, HEAD_OUT + ATTN_QUERY + ATTN_VALUE, every_layer=True, layers=[1, 3]).noop == 0
        with record(model, RESID_PRE + ATTN_ADDED + MLP_ADDED + RESID) as acts:
            model(input_ids=torch.tensor([PROMPTS[1]]))
    for layer in range(4):
        before, mixed, mlp, after = (acts[p, layer] for p in (RESID_PRE, ATTN_ADDED, MLP_ADDED, RESID))
        assert_same(before + mixed + mlp, after)


@pytest.mark.parametrize("name", sorted(HYBRIDS))
def test_heads_are_those_of_attention_and_refused_elsewhere(name):
    model, _ = _pair(name)
    for point in (HEAD_OUT, HEAD_OUT.heads(1), ATTN_QUERY, ATTN_KEY, ATTN_VALUE):  # OLMo's other mixer has a q_proj too
        with pytest.raises(KrsError, match=rf"layer 2 of this .* has no {point.name.split('.')[0]}.*, only 1, 3 have"):
            self_check(model, point, layers=[1, 2])
    with pytest.raises(KrsError, match=r"layer 0 of this .*is no softmax attention.*attn_out is in every layer"):
        _sweep(name, settings=["head_out.each_head()"], windows=windows.each())


@pytest.mark.parametrize("name", ["qwen3_next", *MORE[:2]])
def test_queries_are_told_from_the_gates_beside_them(name):
    """With one token a head puts out its group's value, times a gate: what is left of the projection that has both."""
    model, _ = _pair(name)
    both = ActivationPoint("both", role=".self_attn.q_proj", label="", side="output")
    with float64_throughout(name), torch.no_grad(), record(model, both + ATTN_VALUE + HEAD_OUT, layers=[1]) as acts:
        model(input_ids=torch.tensor([[3]]))
    queries = anatomy(model).units(ATTN_QUERY, 1)
    assert len(queries) == acts[HEAD_OUT, 1].shape[-1]
    gates = acts[both, 1][..., [i for i in range(2 * len(queries)) if i not in queries]]
    assert_same(acts[ATTN_VALUE, 1].repeat(1, 1, 2) * gates.sigmoid(), acts[HEAD_OUT, 1])


@pytest.mark.usefixtures("checked_once")
@pytest.mark.parametrize("name", ["lfm2", "olmo_hybrid"])
def test_whole_layers(name):
    """A mixer uses parameters that are no called module's, so the plain engine does it and says why."""
    asked = {"settings": [WEIGHTS], "windows": windows.of([[0], [0, 1, 2, 3]])}
    found, plain = (_sweep(name, engine=engine, **asked) for engine in ("auto", "plain"))
    assert_same(found.krs.to_numpy(), plain.krs.to_numpy())
    assert found.provenance["engine"] == "plain"
    why = {
        "lfm2": "'conv.conv' in layer 0 is a convolution that may not be called",
        "olmo_hybrid": "'linear_attn' in layer 0 has parameters of its own beside modules",
    }
    assert why[name] in found.provenance["engine_note"]


# Sites


def _sites(name, layer):
    """Every module of a layer, both sides."""
    paths = [path for path, _ in anatomy(_pair(name)[1]).layers[layer].named_modules()]
    return [ActivationPoint("site", role=f".{path}", label="", side=s) for path in paths for s in ("input", "output")]


def _site_agrees(name, layer, site, positions):
    given = {"settings": [Setting((site,)), site + MLP_COEF, site + ATTN_OUT], "windows": windows.of([[layer]])}
    found = []
    for engine in ("wavefront", "plain"):
        try:
            found.append(_sweep(name, engine=engine, positions=positions, **given).krs.to_numpy())
        except KrsError as reason:
            found.append(str(reason))
    if isinstance(found[1], str):
        assert found[0] == found[1]
        assert "never fired" in found[1] or "has no axis of" in found[1]
        inside = site.role.rpartition(".")[2]  # the kernel of a convolution is used, not called; norms by head, flat
        assert inside in ("conv1d", "conv", "act_fn", "norm", "o_norm")
        assert site.role not in (".conv", ".linear_attn")
    else:
        assert_same(*found)


@pytest.mark.usefixtures("checked_once")
@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("name", FEW)
def test_a_sample_of_sites_through_both_engines(name, layer):
    chosen = random.Random(f"sites of {name}, layer {layer}").sample(_sites(name, layer), 2)
    for site, positions in zip(chosen, (None, [-1, 0]), strict=True):
        _site_agrees(name, layer, site, positions)


@pytest.mark.long
@pytest.mark.usefixtures("checked_once")
@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("name", sorted({*HYBRIDS} - {"qwen3_5_moe"}))
def test_every_site_through_both_engines(name, layer):
    for site in _sites(name, layer):
        for positions in (None, [-1, 0]):
            _site_agrees(name, layer, site, positions)


# Packing


@pytest.fixture
def layouts(monkeypatch):
    """How the passes of a sweep lay out their tokens."""
    found, real = [], passes.Pass.__init__

    def spy(self, job, batch, layout, *rest):
        found.append("padded" if layout.tree is None else "packed")
        real(self, job, batch, layout, *rest)

    monkeypatch.setattr(passes.Pass, "__init__", spy)
    return found


def _alike(name, engine):
    return _sweep(name, ALIKE, settings=[ATTN_OUT, RESID], windows=windows.of([[0], [1, 2]]), engine=engine)


@pytest.mark.parametrize("name", ["lfm2", "qwen3_next"])
def test_what_is_no_attention_is_never_packed(name, layouts):
    assert_same(_alike(name, "wavefront").losses.restored, _alike(name, "plain").losses.restored)
    assert layouts == ["padded"]


def test_packing_is_refused_where_no_family_says_that_a_layer_does_not_attend(layouts, monkeypatch):
    """The pass is checked against a prompt that packing moves: the first one it leaves where it is."""
    monkeypatch.setattr(families, "BY_TYPE", families.BY_TYPE.copy())
    known = families.family_of("lfm2")
    register_family(Family("silent", ("lfm2",), known.layers, known.roles, known.final_norm), replace=True)
    assert_same(_alike("lfm2", "wavefront").losses.restored, _alike("lfm2", "plain").losses.restored)
    assert layouts == ["packed", "padded"]


# Answers


def _restored_answer(v, u, prompt, point, layers, n_tokens):
    """Greedy, every token by a forward of all before it in both models."""
    ids = list(prompt)
    for _ in range(n_tokens):
        with torch.no_grad():
            with record(v, point, layers=layers) as acts:
                v(torch.tensor([ids]))
            with patched(u, point.at(*layers).set(acts)):
                ids.append(int(u(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == v.config.eos_token_id:
            break
    return tuple(ids[len(prompt) :])


@pytest.mark.parametrize("name", [*FEW, *MORE])
def test_answers_with_a_cache_are_those_without_alone_and_restored(name):
    v, u = _pair(name)
    with float64_throughout(name):
        alone = [tuple(by_hand.greedy(v, prompt, 5)) for prompt in PROMPTS]
        assert krs.generate(v, None, PROMPTS, n_tokens=5, progress=False).token_ids == tuple(alone)
        point, layers = ATTN_OUT, (0, 1)
        heard = krs.generate(v, u, PROMPTS, restore=point.at(*layers), n_tokens=5, progress=False)
        assert list(heard) == [_restored_answer(v, u, prompt, point, layers, 5) for prompt in PROMPTS]


def test_positions_count_in_the_whole_sequence_under_a_cache():
    """The cache's first layer has no length of its own: the first token of a step is not the first of the sequence."""
    model, _ = _pair("olmo_hybrid")
    nothing = ATTN_OUT.at(0, 1, positions=[0]).map(lambda a: 0 * a)
    ids, n = torch.tensor([PROMPTS[0]]), 6
    with float64_throughout("olmo_hybrid"), torch.no_grad():
        free = model.generate(ids, max_new_tokens=n, do_sample=False)
        with patched(model, nothing):
            kept = model.generate(ids, max_new_tokens=n, do_sample=False)
            for _ in range(n):
                ids = torch.cat([ids, model(ids, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(kept, ids[:, : kept.shape[1]])  # an EOS ends it
    assert not torch.equal(kept, free)


def test_a_mixer_that_sees_padding_gets_a_prompt_at_a_time():
    """A bias in front of LFM2's convolution makes something of the zeros before a shorter prompt."""
    model = build("lfm2", conv_bias=True).double()
    prompts = tuple(map(tuple, PROMPTS))
    assert batching._change_behind_padding(model, prompts[0], 6) > 1e-3
    assert batching.neighbours_matter(model, prompts) == "a prompt's logits change with the padding before it"
    assert batching.neighbours_matter(build("lfm2"), prompts) == ""
    alone = [tuple(by_hand.greedy(model, prompt, 5)) for prompt in PROMPTS]
    assert list(krs.generate(model, None, PROMPTS, n_tokens=5, progress=False)) == alone
