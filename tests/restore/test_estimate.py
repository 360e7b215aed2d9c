"""Estimates from gradients: the numerical derivative, what is left out, what is told."""

import copy
import functools

import numpy as np
import pandas as pd
import pytest
import torch

import krs
from krs import ATTN_OUT, HEAD_OUT, KEYS, MLP_COEF, NORMS, RESID_PRE, VALUE_VECTORS, WEIGHTS, KrsError, windows
from krs.hooks import Setting, anatomy, patched, record
from krs.hooks import attribution as taps
from krs.metrics.measures import KL, ReferenceTokens, ScoredTokens
from krs.prompts import next_token_batch
from krs.restore import attribution
from krs.restore.plan import Plan
from tests.noise import assert_same, float64_throughout
from tests.tiny import exact_pair, pair, same_state, state

PROMPTS = ((5, 9, 11), (7, 3, 22, 8, 40, 2), (13,))
ANSWERS = ((4, 8, 3), (5, 6), (9, 9, 2, 7))
BATCH = next_token_batch(PROMPTS, ANSWERS)
STEP = 1e-4
_pair = functools.cache(exact_pair)


def _sweep(v, u, **options):
    prompts, answers = [list(p) for p in PROMPTS], [list(a) for a in ANSWERS]
    return krs.sweep(v, u, prompts, answers=answers, progress=False, engine="estimate", **options)


def _logits(model):
    with torch.no_grad():
        return model(**BATCH.inputs(), use_cache=False).logits[
            torch.tensor([i for i, s in enumerate(BATCH.scored) for _ in s]), torch.tensor(sum(BATCH.scored, ()))
        ]


def _kl(model, v):
    """The sum over each prompt's tokens."""
    values = KL(ScoredTokens(_logits(model), ReferenceTokens(_logits(v), BATCH.target_ids))).numpy()
    return np.array([part.sum() for part in np.split(values, np.cumsum([len(s) for s in BATCH.scored])[:-1])])


def _moved(u, v, point, layer, step):
    """Patches that take a point a step of the way from the recipient's own value to the donor's."""
    with record(u, point, [layer]) as own:
        _logits(u)
    with record(v, point, [layer]) as donor:
        _logits(v)
    if point.kind == "weight":
        return [point.at(layer).set(own[point, layer] + step * (donor[point, layer] - own[point, layer]))]
    return own[point, layer] + step * (donor[point, layer] - own[point, layer])


def _derivative(u, v, points, layer, positions=None):
    """Of each prompt's KL, along the way from own to donor values of all points at once."""
    ends = []
    for step in (STEP, -STEP):
        patches = []
        for point in points:
            value = _moved(u, v, point, layer, step)
            where = BATCH.where(positions)
            patches += value if isinstance(value, list) else [point.at(layer).set(value, where=where)]
        with patched(u, *patches):
            ends.append(_kl(u, v))
    return (ends[0] - ends[1]) / (2 * STEP)


def _estimated(result, restoration=0):
    kept = result.losses.of("kl")
    return np.where(result.losses.mask, kept.restored[restoration] - kept.recipient, 0).sum(-1)


@pytest.mark.parametrize("name", ["llama", "gpt2", "falcon", "opt", "gemma2"])
def test_the_change_is_the_numerical_derivative(name):
    v, u = _pair(name)
    sums = [(MLP_COEF,), (VALUE_VECTORS,), (ATTN_OUT,), (MLP_COEF, ATTN_OUT), (MLP_COEF, VALUE_VECTORS)]
    sums += [(HEAD_OUT.heads(1),), (MLP_COEF.units(3, 8),), (VALUE_VECTORS.units(3, 8),), (HEAD_OUT, ATTN_OUT)]
    with float64_throughout():
        found = _sweep(v, u, settings=[Setting(s) for s in sums], windows=windows.of([[1], [3]]), measures="kl")
        for i, points in enumerate(sums):
            for j, layer in enumerate((1, 3)):
                expected = _derivative(u, v, points, layer)
                np.testing.assert_allclose(_estimated(found, 2 * i + j), expected, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("positions", ["prompt", "scored", ((0, 2), (1,), (0,))])
def test_positions(positions):
    v, u = _pair("llama")
    with float64_throughout():
        sums = [(ATTN_OUT,), (MLP_COEF, ATTN_OUT), (krs.ATTN_KEY, ATTN_OUT), (RESID_PRE, HEAD_OUT.heads(0))]
        found = _sweep(
            v, u, settings=[Setting(s) for s in sums], windows=windows.of([[2]]), measures="kl", positions=positions
        )
        for i, points in enumerate(sums):
            expected = _derivative(u, v, points, 2, positions)
            np.testing.assert_allclose(_estimated(found, i), expected, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("name", ["llama-bias", "gpt2", "olmo2"])
def test_weights_of_several_modules_and_of_norms(name):
    v, u = _pair(name)
    with float64_throughout():
        found = _sweep(v, u, settings=[KEYS, NORMS, WEIGHTS], windows=windows.of([[2]]), measures="kl")
        for i, point in enumerate((KEYS, NORMS)):
            ends = []
            for step in (STEP, -STEP):
                moved = copy.deepcopy(u)
                for a, b in zip(anatomy(moved).modules(point, 2), anatomy(v).modules(point, 2), strict=True):
                    with torch.no_grad():
                        a.weight += step * (b.weight - a.weight)
                ends.append(_kl(moved, v))
            np.testing.assert_allclose(_estimated(found, i), (ends[0] - ends[1]) / (2 * STEP), rtol=1e-5, atol=1e-9)
        outputs = []
        handle = (
            anatomy(u).layers[2].register_forward_hook(lambda m, a, k, o: outputs.append((a, k, o)), with_kwargs=True)
        )
        _logits(u)
        handle.remove()
        ((args, kwargs, own),) = outputs
        with torch.no_grad():
            theirs = anatomy(v).layers[2](*args, **kwargs)
        own, theirs = (x[0] if isinstance(x, tuple) else x for x in (own, theirs))
        ends = []
        for step in (STEP, -STEP):
            with patched(u, krs.RESID.at(2).set(own + step * (theirs - own))):
                ends.append(_kl(u, v))
        np.testing.assert_allclose(_estimated(found, 2), (ends[0] - ends[1]) / (2 * STEP), rtol=1e-5, atol=1e-9)


def test_a_window_is_the_sum_of_its_layers_and_a_map_of_its_places():
    v, u = _pair("llama")
    points = [ATTN_OUT, HEAD_OUT, HEAD_OUT.heads(0), HEAD_OUT.heads(1)]
    found = _sweep(v, u, settings=points, windows=windows.of([[1], [2], [1, 2]]), measures="kl")
    one, two, both = (_estimated(found, i) for i in range(3))
    assert_same(both, one + two)
    whole, first, second = (_estimated(found, 3 * i) for i in (1, 2, 3))
    assert_same(whole, first + second)


def test_squares_are_those_of_the_linear_response(monkeypatch):
    """`2 r·a + |a|²` with the response `a` of the logits by finite differences, and many samples."""
    monkeypatch.setattr(attribution, "SAMPLES", 200)
    v, u = _pair("llama")
    found = _sweep(v, u, settings=[MLP_COEF, MLP_COEF + ATTN_OUT], windows=windows.of([[1]]))
    for i, points in enumerate([(MLP_COEF,), (MLP_COEF, ATTN_OUT)]):
        ends = []
        for step in (STEP, -STEP):
            with patched(u, *[p.at(1).set(_moved(u, v, p, 1, step)) for p in points]):
                ends.append(_logits(u))
        response = ((ends[0] - ends[1]) / (2 * STEP)).numpy()
        residual = (_logits(u) - _logits(v)).numpy()
        expected = 1 - ((residual + response) ** 2).sum() / (residual**2).sum()
        first = -2 * (residual * response).sum() / (residual**2).sum()
        assert abs(first - expected) > 0.05  # plain first order is far off here
        assert abs(found.krs.iloc[0, i] - expected) < 0.2 * abs(first - expected)


def test_a_transplant_is_estimated_from_squares_alone(monkeypatch):
    monkeypatch.setattr(attribution, "SAMPLES", 40)
    v, u = _pair("llama")
    options = {"settings": [ATTN_OUT, MLP_COEF], "windows": 1, "direction": "transplant"}
    found = _sweep(v, u, **options).recovery().to_numpy()
    assert (found > 0).all()
    with pytest.raises(KrsError, match="'kl' is smallest where the recipient is, which is the reference here"):
        _sweep(v, u, measures="kl", **options)


def test_batches_do_not_matter_and_nothing_is_left_in_the_models():
    v, u = _pair("llama")
    u = copy.deepcopy(u)
    next(u.parameters()).requires_grad_(False)
    before, asking = state(u), [p.requires_grad for p in u.parameters()]
    options = {"settings": [MLP_COEF + ATTN_OUT, VALUE_VECTORS], "windows": 3, "measures": "kl"}
    with float64_throughout():
        together, alone = _sweep(v, u, **options), _sweep(v, u, memory=1, **options)
    assert_same(together.losses.restored[:, together.losses.mask], alone.losses.restored[:, alone.losses.mask])
    assert_same(together.table("kl"), alone.table("kl"))
    assert same_state(u, before)
    assert [p.requires_grad for p in u.parameters()] == asking
    assert all(p.grad is None for p in u.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in u.modules())


@pytest.mark.parametrize("lets_by", [False, True])
def test_what_acts_through_the_coefficients_is_known_from_where_the_mlp_is_entered(lets_by, monkeypatch):
    v, u = pair("llama")
    v, u = v.double(), u.double()
    if lets_by:
        for layer in (*v.model.layers, *u.model.layers):
            layer.mlp.forward = lambda x, own=layer.mlp.forward: own(x) + 0.3 * x
    asked = {"settings": MLP_COEF + ATTN_OUT, "windows": 1}
    found = _sweep(v, u, **asked).to_frame()
    seen = []
    own = taps.Answer._by_entry

    def longer(answer, tap, after, gradient):
        seen.append(answer._taps._holds)
        return taps._backward([(after, gradient)], tap)

    monkeypatch.setattr(taps.Answer, "_by_entry", longer)
    pd.testing.assert_frame_equal(found, _sweep(v, u, **asked).to_frame(), rtol=1e-9)
    assert seen
    monkeypatch.setattr(taps.Answer, "_by_entry", lambda *given: seen.append(given[0]._taps._holds) or own(*given))
    _sweep(v, u, **asked)
    assert list(seen[-1].values()) == [not lets_by]


def test_it_says_that_it_estimates(tmp_path):
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    v, u = pair("llama")
    found = _sweep(v, u, windows=3)
    read = krs.load_result(found.save(tmp_path / "e.krs"))
    for result in (found, read):
        assert result.estimated
        assert result.provenance["exact"] is False
        assert "SweepResult: ESTIMATED, 4 settings" in repr(result)
        assert "note: these numbers are estimates" in repr(result)
        axes = result.plot(Figure().add_subplot())
        assert axes.get_title().startswith("estimated; ")
    exact = krs.sweep(v, u, [list(p) for p in PROMPTS], windows=3, n_tokens=2, progress=False)
    assert not exact.estimated
    assert "stimate" not in repr(exact)


def test_estimates_and_exact_parts_are_never_joined(tmp_path):
    v, u = pair("llama")
    prompts = [list(p) for p in PROMPTS]
    options = {"windows": 3, "n_tokens": 2, "progress": False, "checkpoint": tmp_path / "c.krs"}
    for first, then in (("plain", "estimate"), ("estimate", "plain")):
        (tmp_path / "c.krs").unlink(missing_ok=True)
        krs.sweep(v, u, prompts, engine=first, **options)
        with pytest.raises(KrsError, match="estimate is not an exact one"):
            krs.sweep(v, u, prompts, engine=then, **options)


def _steps(logits, reference_logits, target_ids):
    return (logits > reference_logits).float().mean(-1)


def test_what_has_no_gradient_is_refused():
    for name in ("rank", "top1"):
        with pytest.raises(KrsError, match=f"follows gradients, and '{name}' jumps"):
            krs.sweep("not a model", "nor this", ["a"], engine="estimate", measures=name)
    v, u = pair("llama")
    with pytest.raises(KrsError, match="'_steps' has none with respect to the logits"):
        _sweep(v, u, measures=_steps)
    with pytest.raises(KrsError, match="estimates what is put into layers, and embedding is in none: leave that"):
        _sweep(v, u, settings=["mlp_coef", "embedding"])


def test_a_point_that_no_gradient_reaches(monkeypatch):
    v, u = pair("llama")
    layer = anatomy(u).layers[1].mlp.down_proj
    layer.register_forward_hook(lambda module, args, output: output.detach())
    with pytest.raises(KrsError, match=r"mlp_coef at layer 1: no gradient of the logits reaches"):
        _sweep(v, u, settings=MLP_COEF, windows=1)


def test_the_plan_is_the_same():
    v, u = pair("llama")
    assert _sweep(v, u, windows=3).plan == Plan.make(None, 3, n_layers=4)
