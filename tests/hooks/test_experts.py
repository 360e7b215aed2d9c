"""Mixtures of experts: every point that they have, through both engines; what they do not have is said."""

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
from krs.hooks import record, self_check
from tests.noise import assert_same, float64_throughout
from tests.tiny import EXPERTS, exact_pair

POINTS = [RESID, RESID_PRE, MLP_OUT, ATTN_OUT, HEAD_OUT.heads(1), ATTN_QUERY, ATTN_WEIGHTS, NORMS]
PROMPTS = [[5, 9, 11], [7, 3, 22, 8, 40, 2], [13]]
LATENT = ("deepseek_v2", "deepseek_v3")


def _pair(name):
    return exact_pair(name, experts_implementation="eager")  # the others have no float64


@pytest.mark.parametrize("name", sorted(EXPERTS))
def test_every_point_there_is_through_both_engines(name):
    v, u = _pair(name)
    options = {"windows": windows.of([[1, 2], [3]]), "n_tokens": 4, "progress": False}
    points = POINTS if name in LATENT else [*POINTS, ATTN_KEY + ATTN_VALUE]
    with float64_throughout():
        found, plain = (krs.sweep(v, u, PROMPTS, settings=points, engine=e, **options) for e in ("auto", "plain"))
    assert found.provenance["engine"] == "wavefront", found.provenance["engine_note"]
    assert_same(found.krs.to_numpy(), plain.krs.to_numpy())


@pytest.mark.parametrize("name", sorted(EXPERTS))
def test_whole_layers_with_experts_through_both_engines(name):
    v, u = _pair(name)
    options = {"settings": [WEIGHTS], "windows": windows.of([[1, 2], [3]]), "n_tokens": 4, "progress": False}
    with float64_throughout():
        found, plain = (krs.sweep(v, u, PROMPTS, engine=engine, **options) for engine in ("auto", "plain"))
    assert_same(found.krs.to_numpy(), plain.krs.to_numpy())
    if found.provenance["engine"] == "plain":  # gpt-oss keeps attention sinks beside modules
        assert "has parameters of its own beside modules" in found.provenance["engine_note"]


def test_all_layers_with_experts_restored_are_the_vanilla_model():
    v, u = _pair("moe")
    u.lm_head.load_state_dict(v.lm_head.state_dict())
    u.model.norm.load_state_dict(v.model.norm.state_dict())
    u.model.embed_tokens.load_state_dict(v.model.embed_tokens.state_dict())
    found = krs.sweep(v, u, PROMPTS, settings=[WEIGHTS], windows=windows.of([[0, 1, 2, 3]]), n_tokens=4, progress=False)
    assert found.krs.iloc[0, 0] == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("name", sorted(EXPERTS))
def test_self_check_of_each_point(name):
    model = _pair(name)[0]
    points = MLP_OUT + ATTN_OUT + HEAD_OUT + ATTN_QUERY + RESID
    with float64_throughout():
        assert self_check(model, points, every_layer=True).noop == 0


@pytest.mark.parametrize("name", sorted(EXPERTS))
def test_the_mlps_output_is_what_is_added(name):
    model = _pair(name)[0]
    by = getattr(model.config, "residual_multiplier", 1)
    with float64_throughout(), torch.no_grad(), record(model, RESID_PRE + ATTN_OUT + MLP_OUT + RESID) as acts:
        model(input_ids=torch.tensor([PROMPTS[1]]))
    for layer in range(4):
        before, attention, mlp, after = (acts[p, layer] for p in (RESID_PRE, ATTN_OUT, MLP_OUT, RESID))
        assert_same(before + by * (attention + mlp), after)


@pytest.mark.parametrize("name", sorted(EXPERTS))
@pytest.mark.parametrize("point", [MLP_COEF, VALUE_VECTORS, KEYS], ids=str)
def test_points_of_one_projection_are_refused(name, point):
    with pytest.raises(KrsError, match=r"several experts.*settings=\['attn_out'\] works"):
        self_check(_pair(name)[0], point)


@pytest.mark.parametrize("name", LATENT)
def test_keys_and_values_of_a_latent_are_refused(name):
    for point in (ATTN_KEY, ATTN_VALUE):
        with pytest.raises(KrsError, match=r"keys and values of a latent vector.*kv_b_proj"):
            self_check(_pair(name)[0], point)
