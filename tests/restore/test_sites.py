"""Any module of a layer, its input and its output, through both engines: the same number, or the same refusal."""

import functools
import random

import numpy as np
import pytest
import torch

import krs
from krs import (
    ATTN_KEY,
    ATTN_OUT,
    ATTN_QUERY,
    ATTN_VALUE,
    ATTN_WEIGHTS,
    HEAD_OUT,
    KEYS,
    MLP_COEF,
    MLP_OUT,
    NORMS,
    RESID,
    RESID_PRE,
    VALUE_VECTORS,
    WEIGHTS,
    KrsError,
    windows,
)
from krs.hooks import ActivationPoint, Setting, anatomy
from tests.noise import assert_same, float64_throughout
from tests.restore.once import checked_once  # noqa: F401
from tests.tiny import FAMILIES, exact_pair, pair, same_state, state

PROMPTS = [[5, 9, 11], [7, 3, 22, 8, 40, 2], [13]]
WINDOWS = windows.of([[1, 2], [3]])
_pair = functools.cache(exact_pair)


def _scores(v, u, engine, **options):
    try:
        return krs.sweep(
            v, u, PROMPTS, windows=WINDOWS, n_tokens=5, progress=False, engine=engine, **options
        ).krs.to_numpy()
    except KrsError as reason:
        return str(reason)


def _agree(name, settings, positions=None):
    v, u = _pair(name)
    with float64_throughout(name):
        ours, twin = (_scores(v, u, e, settings=settings, positions=positions) for e in ("wavefront", "plain"))
    if isinstance(twin, str) or isinstance(ours, str):
        assert ours == twin
        assert "never fired" in twin or "has no axis of" in twin
        return False
    assert_same(ours, twin)
    return True


def _sites(name):
    """Every module of a layer, both sides."""
    layer = anatomy(_pair(name)[1]).layers[1]
    paths = [path for path, m in layer.named_modules() if not isinstance(m, torch.nn.ModuleList)]
    return [ActivationPoint("site", role=f".{path}", label="", side=s) for path in paths for s in ("input", "output")]


def _beside(site, positions):
    extra = [MLP_COEF, ATTN_OUT] if positions else [MLP_COEF, ATTN_OUT, VALUE_VECTORS]
    return [Setting((site,)), *(site + point for point in extra)]


def _must_answer(site, name):
    """The layer, attention and MLP modules, every projection and every norm."""
    module = anatomy(_pair(name)[1]).layers[1].get_submodule(site.role[1:])
    return "dropout" not in type(module).__name__.lower()


@pytest.mark.usefixtures("checked_once")
@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_a_sample_of_sites_through_both_engines(name):
    chosen = random.Random(f"sites of {name}").sample(_sites(name), 3)
    for site, positions in zip(chosen, (None, [-1, 0], None), strict=True):
        assert _agree(name, _beside(site, positions), positions) or not _must_answer(site, name)


@pytest.mark.long
@pytest.mark.usefixtures("checked_once")
@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_every_site_through_both_engines(name):
    for site in _sites(name):
        for positions in (None, [-1, 0]):
            assert _agree(name, _beside(site, positions), positions) or not _must_answer(site, name)


POINTS = [
    RESID,
    RESID_PRE,
    MLP_OUT,
    HEAD_OUT,
    HEAD_OUT.heads(1),
    ATTN_QUERY,
    ATTN_KEY,
    ATTN_VALUE,
    ATTN_QUERY.heads(0) + ATTN_KEY.heads(0) + ATTN_VALUE,
    MLP_COEF.units(3, 5),
    VALUE_VECTORS.units(3, 5),
    VALUE_VECTORS.units(1) + MLP_COEF,
    RESID.units(1, 2) + MLP_COEF,
    WEIGHTS,
    WEIGHTS + MLP_COEF,
    WEIGHTS + ATTN_OUT,
    KEYS,
    ATTN_WEIGHTS,
    KEYS + VALUE_VECTORS,
]


@pytest.mark.usefixtures("checked_once")
@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_the_librarys_points_through_both_engines(name):
    before = [state(m) for m in _pair(name)]
    points = POINTS if name == "olmo" else [*POINTS, NORMS]
    assert _agree(name, points)
    assert _agree(name, points, "prompt")
    assert all(same_state(m, was) for m, was in zip(_pair(name), before, strict=True))


def test_norms_without_weights_are_refused():
    v, u = _pair("olmo")
    with pytest.raises(KrsError, match="has no norms with weights"):
        krs.sweep(v, u, PROMPTS, settings=[NORMS], progress=False)


def test_the_residual_stream_as_input_of_gpt2_by_hand():
    v, u = _pair("gpt2")
    chosen = windows.of([[1], [3]])
    result = krs.sweep(v, u, PROMPTS[:2], settings=[RESID_PRE], windows=chosen, n_tokens=5, progress=False)
    expected = _residual_by_hand(v, u, PROMPTS[:2], (1, 3), 5)
    np.testing.assert_allclose(result.krs["resid_pre"], expected, rtol=0, atol=1e-9)
    assert result.provenance["engine"] == "wavefront"


def _residual_by_hand(v, u, prompts, layers, n_tokens):
    """The vanilla model's hidden states go into a layer of the unlearned one: transformers' own hidden_states."""
    from tests import by_hand

    base, restored = 0.0, np.zeros(len(layers))
    for prompt in prompts:
        answer = by_hand.greedy(v, prompt, n_tokens)
        ids = torch.tensor([prompt + answer])
        scored = slice(len(prompt) - 1, len(prompt) + len(answer) - 1)
        with torch.no_grad():
            clean = v(ids, output_hidden_states=True)
            base += (u(ids).logits[0, scored] - clean.logits[0, scored]).pow(2).mean(-1).sum().item()
            for i, layer in enumerate(layers):
                hook = u.transformer.h[layer].register_forward_pre_hook(
                    lambda _, args, x=clean.hidden_states[layer]: (x, *args[1:])
                )
                logits = u(ids).logits[0, scored]
                hook.remove()
                restored[i] += (logits - clean.logits[0, scored]).pow(2).mean(-1).sum().item()
    return 1 - restored / base


def test_all_residual_streams_of_the_last_layer_leave_only_the_norm_and_the_head():
    v, u = pair("llama")
    u.lm_head.load_state_dict(v.lm_head.state_dict())
    u.model.norm.load_state_dict(v.model.norm.state_dict())
    scores = krs.sweep(v, u, PROMPTS, settings=[RESID], windows=windows.of([[3]]), n_tokens=5, progress=False).krs
    assert scores.iloc[0, 0] == pytest.approx(1, abs=1e-9)
