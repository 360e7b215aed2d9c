"""Measures and directions through both engines, against transformers and torch by hand."""

import copy

import numpy as np
import pytest
import torch
from torch.nn import functional as F  # noqa: N812

import krs
from krs import ATTN_OUT, MLP_COEF, RESID, VALUE_VECTORS, KrsError, windows
from krs.restore.wave import passes, scorer
from tests import by_hand
from tests.noise import float64_throughout
from tests.tiny import FAMILIES, pair

PROMPTS = [[5, 9, 11], [7, 3, 22, 8, 40, 2], [13]]
SETTINGS = [MLP_COEF, VALUE_VECTORS, ATTN_OUT, MLP_COEF + ATTN_OUT, RESID]
WINDOWS = windows.of([[0, 1], [2], [3]])
MEASURES = ["kl", "kl_reverse", "answer_logprob", "rank", "top1"]


def entropy(logits, reference_logits, target_ids):
    p = torch.softmax(logits, -1)
    return -(p * p.log()).sum(-1)


def _sweep(v, u, **options):
    base = {
        "settings": SETTINGS,
        "windows": WINDOWS,
        "n_tokens": 5,
        "progress": False,
        "measures": [*MEASURES, entropy],
    }
    return krs.sweep(v, u, PROMPTS, **(base | options))


@pytest.fixture(scope="module")
def doubles():
    return {name: tuple(m.double() for m in pair(name)) for name in ("llama", "gpt2", "gemma2", "cohere", "phi")}


@pytest.mark.parametrize("direction", ["restore", "transplant"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "cohere", "phi"])
def test_both_engines_measure_the_same(name, direction, doubles):
    v, u = doubles[name]
    with float64_throughout(name):
        ours, twin = (_sweep(v, u, direction=direction, engine=engine) for engine in ("wavefront", "plain"))
    for measure in ours.measures:
        np.testing.assert_allclose(ours.table(measure), twin.table(measure), rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(ours.recovery(measure), twin.recovery(measure), rtol=1e-8, atol=1e-8)
        for side in ("recipient", "donor"):
            a, b = (getattr(r.losses.of(measure), side)[r.losses.mask] for r in (ours, twin))
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("room", [True, False])
def test_what_does_not_depend_on_rows_is_measured_once_however_many_parts_a_pass_has(room, doubles, monkeypatch):
    """The reference's logits are made once, where there is room for them, and those of both ends once in any case."""
    v, u = doubles["llama"]
    twin = _sweep(v, u, engine="plain")
    for name, value in {"_CHUNK_TOKENS": {"cpu": 1, "cuda": 1}, "_LONG": 0}.items():
        monkeypatch.setattr(passes, name, value)
    if not room:
        monkeypatch.setattr(scorer, "_KEPT", 10**9)
    ends, made = [], []
    real_ends, real_logits = scorer.Ends.values, scorer.logits_of
    monkeypatch.setattr(scorer.Ends, "values", lambda self, *rows: (ends.append(self), real_ends(self, *rows))[1])
    monkeypatch.setattr(scorer, "logits_of", lambda body, x: (made.append(body.model), real_logits(body, x))[1])
    ours = _sweep(v, u, engine="wavefront")
    assert len(ends) > 3
    assert len(set(map(id, ends))) == 1
    assert all(model is v for model in made)
    # the reference's for rows, and for both ends; the donor, which is the same model, as an end
    assert len(made) == (2 if room else len(ends) + 2)
    for measure in ours.measures:
        np.testing.assert_allclose(ours.table(measure), twin.table(measure), rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(ours.recovery(measure), twin.recovery(measure), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("engine", ["wavefront", "plain"])
def test_kl_and_log_probability_by_hand(engine, doubles):
    v, u = doubles["llama"]
    result = _sweep(v, u, settings=["mlp_coef"], windows=windows.of([[1, 2]]), engine=engine)
    kl, logprob, own, theirs, n = 0.0, 0.0, 0.0, 0.0, 0
    for prompt in PROMPTS:
        answer = by_hand.greedy(v, prompt, 5)
        ids = torch.tensor([prompt + answer])
        scored = slice(len(prompt) - 1, len(prompt) + len(answer) - 1)
        target, kept = by_hand._vanilla_values(v, ids, 4)
        logits = by_hand._restored_logits(u, v, ids, kept, "mlp_coef", [1, 2])
        with torch.no_grad():
            plain = u(ids).logits[0]
        next_ids = torch.tensor(answer)
        p, q = (torch.log_softmax(x[scored], -1) for x in (target, logits))
        kl += F.kl_div(q, p, log_target=True, reduction="sum").item()
        logprob -= F.cross_entropy(logits[scored], next_ids, reduction="sum").item()
        own -= F.cross_entropy(plain[scored], next_ids, reduction="sum").item()
        theirs -= F.cross_entropy(target[scored], next_ids, reduction="sum").item()
        n += len(answer)
    assert result.table("kl").iloc[0, 0] == pytest.approx(kl / n, rel=1e-9)
    assert result.table("answer_logprob").iloc[0, 0] == pytest.approx(logprob / n, rel=1e-9)
    expected = (logprob - own) / (theirs - own)
    assert result.recovery("answer_logprob").iloc[0, 0] == pytest.approx(expected, rel=1e-9)


def test_the_mse_of_a_transplant_by_hand(doubles):
    v, u = doubles["llama"]
    result = _sweep(v, u, settings=["mlp_coef"], windows=windows.of([[1, 2]]), direction="transplant")
    found = between = 0.0
    for prompt in PROMPTS:
        answer = by_hand.greedy(v, prompt, 5)
        ids = torch.tensor([prompt + answer])
        scored = slice(len(prompt) - 1, len(prompt) + len(answer) - 1)
        bad, kept = by_hand._vanilla_values(u, ids, 4)
        logits = by_hand._restored_logits(v, u, ids, kept, "mlp_coef", [1, 2])
        with torch.no_grad():
            good = v(ids).logits[0]
        found += (logits[scored] - good[scored]).pow(2).mean(-1).sum().item()
        between += (bad[scored] - good[scored]).pow(2).mean(-1).sum().item()
    assert result.recovery().iloc[0, 0] == pytest.approx(found / between, rel=1e-9)


def test_a_transplant_has_no_krs_and_says_what_it_has(doubles, tmp_path):
    v, u = doubles["llama"]
    result = _sweep(v, u, direction="transplant")
    with pytest.raises(
        KrsError, match="it restored nothing, so there is no Knowledge Recovery Score: result.recovery()"
    ):
        result.krs  # noqa: B018
    assert "transplanted" in repr(result)
    assert list(result.to_frame().columns)[-1] == "recovery"
    again = krs.load_result(result.save(tmp_path / "t.krs"))
    assert again.direction == "transplant"
    assert again.recovery("kl").equals(result.recovery("kl"))
    assert again.measures == result.measures


def test_the_recovery_of_the_mse_is_the_score(doubles):
    result = _sweep(*doubles["llama"])
    assert result.recovery().equals(result.krs)
    assert result.recovery("logit_mse").equals(result.krs)
    assert (result.table("top1") >= 0).all(axis=None)
    with pytest.raises(KrsError, match="'bleu' was not measured: this result has logit_mse, kl"):
        result.table("bleu")


def test_an_interval_holds_the_score_and_is_a_point_where_prompts_agree(doubles):
    result = _sweep(*doubles["llama"])
    low, high = result.interval(0.9)
    assert (low <= result.krs + 1e-12).all(axis=None)
    assert (result.krs <= high + 1e-12).all(axis=None)
    assert (high - low).max(axis=None) > 1e-3
    same = krs.sweep(*doubles["llama"], [PROMPTS[0]] * 4, settings=["mlp_coef"], n_tokens=5, progress=False)
    low, high = same.interval()
    np.testing.assert_allclose(low, high, rtol=0, atol=1e-9)
    with pytest.raises(KrsError, match="at least two"):
        krs.sweep(*doubles["llama"], PROMPTS[:1], settings=["mlp_coef"], n_tokens=5, progress=False).interval()


@pytest.mark.parametrize("change", [0.0, 3e-7])
@pytest.mark.parametrize("direction", ["restore", "transplant"])
def test_models_that_are_equal_up_to_rounding_have_no_recovery_and_no_interval(change, direction):
    """Of rounding alone, ratios are any number."""
    v, _ = pair("llama")
    u = copy.deepcopy(v)
    u.model.layers[1].mlp.down_proj.weight.data.mul_(1 + change)
    found = _sweep(v, u, measures=["kl", "rank"], direction=direction)
    for measure in found.measures:
        assert found.recovery(measure).isna().all(axis=None)
        assert all(edge.isna().all(axis=None) for edge in found.interval(measure=measure))
    assert "nothing was unlearned" in found.notes[0]
    assert found.to_frame(per_prompt=True).iloc[:, -1].isna().all()


def test_what_is_not_finite_has_no_recovery(doubles):
    found = _sweep(*doubles["llama"], direction="transplant", measures="kl")
    found.losses.restored[0, 1, 0] = np.inf
    found.losses.measured["kl"].donor[0, 0] = np.inf
    assert np.isnan(found.recovery().iloc[0, 0])
    assert found.recovery().iloc[1:].notna().all(axis=None)
    assert found.recovery("kl").isna().all(axis=None)
    assert np.isnan(found.interval()[0].iloc[0, 0])


def test_measures_of_the_answer_where_a_position_predicts_none():
    """The last position of that scoring never predicts one, so that it is said before anything is loaded."""
    with pytest.raises(KrsError, match="'answer_logprob' looks at the answer's tokens, and scoring='paper-code'"):
        krs.sweep("no/vanilla", "no/unlearned", PROMPTS[:1], scoring="paper-code", measures=["answer_logprob"])


def test_rows_of_one_setting(doubles):
    result = _sweep(*doubles["llama"])
    assert len(result.sel("resid")) == 3
    assert result.sel(MLP_COEF, 2)["krs"].iloc[0] == result.krs.loc[2, "mlp_coef"]
    with pytest.raises(KrsError, match="'norms' was not swept"):
        result.sel("norms")


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_the_answers_log_probability_in_every_family(name):
    v, u = (m.double() for m in pair(name))
    options = {"settings": [RESID, MLP_COEF], "windows": windows.of([[2]]), "n_tokens": 4, "progress": False}
    ours, twin = (
        krs.sweep(v, u, PROMPTS, measures="answer_logprob", engine=engine, **options)
        for engine in ("wavefront", "plain")
    )
    np.testing.assert_allclose(ours.table("answer_logprob"), twin.table("answer_logprob"), rtol=1e-6)


def test_another_function_of_the_same_name_is_another_sweep(doubles, tmp_path):
    v, u = doubles["llama"]

    def mine(logits, reference_logits, target_ids):
        return logits.max(-1).values

    first, options = mine, {"settings": ["mlp_coef"], "checkpoint": tmp_path / "part.krs"}
    found = _sweep(v, u, measures=[first], **options)

    def mine(logits, reference_logits, target_ids):
        return logits.min(-1).values

    with pytest.raises(KrsError, match="holds another sweep. What differs: measures"):
        _sweep(v, u, measures=[mine], **options)
    assert _sweep(v, u, measures=[first], **options).table("mine").equals(found.table("mine"))


def test_patching_between_any_two_models(doubles):
    v, u = doubles["llama"]
    options = {"settings": [MLP_COEF], "windows": WINDOWS, "n_tokens": 5, "progress": False, "measures": ["kl"]}
    denoised = krs.patch_sweep(u, v, PROMPTS, **options)
    assert denoised.krs.equals(krs.sweep(v, u, PROMPTS, **options).krs)
    noised = krs.patch_sweep(v, u, PROMPTS, reference=v, **options)
    transplanted = krs.sweep(v, u, PROMPTS, direction="transplant", **options)
    assert noised.recovery("kl").equals(transplanted.recovery("kl"))
    with pytest.raises(KrsError, match="takes no direction="):
        krs.patch_sweep(v, u, PROMPTS, direction="restore")
