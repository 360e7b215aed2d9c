"""The token embedding and the head: points without a layer, by hand and through both engines."""

import functools

import numpy as np
import pytest
import torch

import krs
from krs import EMBEDDING, MLP_COEF, RESID, UNEMBEDDING, WEIGHTS, KrsError, windows
from krs.hooks import patched, record
from tests import by_hand
from tests.noise import assert_same, float64_throughout
from tests.tiny import FAMILIES, exact_pair, same_state, state

PROMPTS = [[5, 9, 11], [7, 3, 22, 8, 40, 2], [13]]
SETTINGS = [EMBEDDING, UNEMBEDDING, EMBEDDING + UNEMBEDDING, RESID, EMBEDDING + MLP_COEF, UNEMBEDDING + MLP_COEF]
WINDOWS = windows.of([[1, 2], [3]])
_pair = functools.cache(exact_pair)


def _sweep(v, u, engine="auto", settings=SETTINGS, **options):
    return krs.sweep(
        v, u, PROMPTS, settings=settings, windows=WINDOWS, n_tokens=5, progress=False, engine=engine, **options
    )


def _by_hand(v, u, n_tokens=5):
    """KRS with the vanilla embedding in the unlearned model, with the vanilla head, and with both: forward hooks."""
    loss, base = np.zeros(3), 0.0
    for prompt in PROMPTS:
        answer = by_hand.greedy(v, prompt, n_tokens)
        ids = torch.tensor([prompt + answer])
        scored = slice(len(prompt) - 1, len(prompt) + len(answer) - 1)
        table, head = u.get_input_embeddings(), u.get_output_embeddings()

        def embedded(module, args, _):
            wide = torch.nn.functional.embedding(args[0], v.get_input_embeddings().weight)
            return wide * getattr(module, "embed_scale", 1.0)

        def read_out(module, args, _):
            return torch.nn.functional.linear(args[0], v.get_output_embeddings().weight, module.bias)

        with torch.no_grad():
            target = v(ids).logits[0, scored]
            base += (u(ids).logits[0, scored] - target).pow(2).mean(-1).sum().item()
            for i, hooks in enumerate(
                ([(table, embedded)], [(head, read_out)], [(table, embedded), (head, read_out)]),
            ):
                handles = [module.register_forward_hook(hook) for module, hook in hooks]
                loss[i] += (u(ids).logits[0, scored] - target).pow(2).mean(-1).sum().item()
                for handle in handles:
                    handle.remove()
    return 1 - loss / base


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_both_ends_by_hand_and_through_both_engines(name):
    v, u = _pair(name)
    before = [state(m) for m in (v, u)]
    with float64_throughout(name):
        fast, plain = _sweep(v, u, "wavefront"), _sweep(v, u, "plain")
        expected = _by_hand(v, u)
    assert_same(fast.krs.to_numpy(), plain.krs.to_numpy())
    for setting, wanted in zip(SETTINGS[:3], expected, strict=True):
        column = plain.krs[setting.name].dropna()
        assert column.index.tolist() == [setting.name]
        np.testing.assert_allclose(column.iloc[0], wanted, rtol=0, atol=1e-9)
    assert all(same_state(m, was) for m, was in zip((v, u), before, strict=True))


def test_everything_of_the_vanilla_model_but_the_final_norm_is_the_vanilla_model():
    v, u = _pair("llama-bias")
    u.model.norm.load_state_dict(v.model.norm.state_dict())
    setting = EMBEDDING + WEIGHTS + UNEMBEDDING
    result = krs.sweep(v, u, PROMPTS, settings=[setting], windows=windows.last(4), n_tokens=5, progress=False)
    assert result.provenance["engine"] == "wavefront"
    np.testing.assert_allclose(result.krs.to_numpy(), 1, rtol=0, atol=1e-9)
    _pair.cache_clear()


@pytest.mark.parametrize(("tied", "name"), [(True, "llama"), (False, "llama-bias")])
def test_one_of_a_tied_pair_is_restored_in_its_own_use_only(tied, name):
    v, u = _pair(name)
    assert (u.lm_head.weight is u.model.embed_tokens.weight) == tied
    before, ids = state(u), torch.tensor(PROMPTS[:1])
    with torch.no_grad():
        final = u.model(ids)[0]
        with patched(u, UNEMBEDDING.at().set(v)):
            logits, same = u(ids).logits, u.model(ids)[0]
        with patched(u, EMBEDDING.at().set(v)):
            embedded, head = u.model.embed_tokens(ids), u.lm_head(final)
        torch.testing.assert_close(same, final, rtol=0, atol=0)
        torch.testing.assert_close(logits, torch.nn.functional.linear(final, v.lm_head.weight))
        torch.testing.assert_close(embedded, v.model.embed_tokens(ids), rtol=0, atol=0)
        torch.testing.assert_close(head, u.lm_head(final), rtol=0, atol=0)
    assert same_state(u, before)


def test_the_vectors_of_some_tokens_and_some_rows_of_the_head():
    v, u = _pair("llama")
    settings = [EMBEDDING.units(9, 3), EMBEDDING.units(60), UNEMBEDDING.units(2), UNEMBEDDING.units(*range(16))]
    fast, plain = _sweep(v, u, "wavefront", [*settings, UNEMBEDDING]), _sweep(v, u, "plain", [*settings, UNEMBEDDING])
    assert_same(fast.krs.to_numpy(), plain.krs.to_numpy())
    found = plain.krs.loc["embedding"].dropna()
    assert found["embedding.units(60)"] == pytest.approx(0, abs=1e-9)  # no prompt has this token
    assert abs(found["embedding.units(3, 9)"]) > 1e-3
    heads = plain.krs.loc["unembedding"]
    assert heads.iloc[3] == pytest.approx(heads["unembedding"], abs=1e-12)


@pytest.mark.parametrize("name", ["gemma2", "cohere", "phi"])
def test_measures_of_logits_under_another_head(name):
    v, u = _pair(name)
    asked = {"settings": [EMBEDDING, UNEMBEDDING, MLP_COEF], "measures": ["kl", "answer_logprob", "top1"]}
    for direction in ("restore", "transplant"):
        with float64_throughout(name):
            fast, plain = (_sweep(v, u, e, **asked, direction=direction) for e in ("wavefront", "plain"))
        for measure in fast.measures:
            assert_same(fast.table(measure).to_numpy(), plain.table(measure).to_numpy())


def test_projections_around_the_layers_stay_the_models_own():
    """OPT-350m: the embedding is narrower than the layers."""
    v, u = exact_pair("opt", word_embed_proj_dim=8, do_layer_norm_before=False)
    result = _sweep(v, u, "auto")
    expected = _by_hand(v, u)
    for setting, wanted in zip(SETTINGS[:3], expected, strict=True):
        np.testing.assert_allclose(result.krs[setting.name].dropna().iloc[0], wanted, rtol=0, atol=1e-9)


def test_a_place_without_a_layer_on_the_axis_in_tables_figures_and_files(tmp_path):
    v, u = _pair("llama")
    result = _sweep(v, u, settings=[UNEMBEDDING, MLP_COEF, EMBEDDING])
    assert result.krs.index.tolist() == ["embedding", 1, 3, "unembedding"]
    assert result.krs.notna().sum().sum() == len(result.plan) == 4
    frame = result.to_frame().set_index(["setting", "window"])
    assert frame.loc[("embedding", "embedding"), ["first_layer", "last_layer"]].isna().all()
    assert frame.loc[("mlp_coef", 1), "last_layer"] == 2
    assert result.best().loc["unembedding", "window"] == "unembedding"
    again = krs.load_result(result.save(tmp_path / "ends.krs"))
    assert again.plan == result.plan
    assert again.krs.equals(result.krs)
    axes = result.plot()
    lines = {line.get_label(): list(line.get_xdata()) for line in axes.get_lines()}
    assert lines["Token embedding"] == [0]
    assert lines["MLP coefficients"] == [1, 3]
    assert lines["Unembedding"] == [4]
    assert [t.get_text() for t in axes.get_xticklabels()] == ["embedding", "1", "3", "unembedding"]


def test_recordings_placements_and_generation():
    v, u = _pair("gemma")
    with record(v, EMBEDDING + UNEMBEDDING + MLP_COEF, layers=[1]) as acts:
        v(torch.tensor(PROMPTS[:1]))
    torch.testing.assert_close(acts[EMBEDDING], v.model.embed_tokens.weight.detach(), rtol=0, atol=0)
    torch.testing.assert_close(acts[UNEMBEDDING], v.lm_head.weight.detach().T, rtol=0, atol=0)
    assert EMBEDDING in acts
    assert (MLP_COEF, 1) in acts
    with patched(u, (EMBEDDING + UNEMBEDDING).at().set(acts)), record(u, EMBEDDING + UNEMBEDDING) as seen:
        u(torch.tensor(PROMPTS[:1]))
    torch.testing.assert_close(seen[EMBEDDING], acts[EMBEDDING], rtol=0, atol=0)
    torch.testing.assert_close(seen[UNEMBEDDING], acts[UNEMBEDDING], rtol=0, atol=0)
    both = (EMBEDDING + WEIGHTS + UNEMBEDDING).at(*range(4))
    u.model.norm.load_state_dict(v.model.norm.state_dict())
    ours = krs.generate(v, u, PROMPTS, restore=both, n_tokens=6, progress=False)
    theirs = krs.generate(v, None, PROMPTS, n_tokens=6, progress=False)
    own = krs.generate(v, u, PROMPTS, n_tokens=6, progress=False)
    assert ours.token_ids == theirs.token_ids != own.token_ids
    _pair.cache_clear()


def test_what_has_no_layer_takes_none_and_what_has_one_needs_it():
    with pytest.raises(KrsError, match=r"embedding has no layer: write embedding.at\(\), without a number"):
        EMBEDDING.at(3)
    with pytest.raises(KrsError, match="names no layer"):
        (EMBEDDING + MLP_COEF).at()
    assert repr(UNEMBEDDING.at()) == "unembedding.at()"
    v, u = _pair("llama")
    with pytest.raises(KrsError, match=r"unit 61 is out of range, there are 61$"):
        _sweep(v, u, settings=[EMBEDDING.units(61)])
    with pytest.raises(KrsError, match="positions= does not go"):
        EMBEDDING.at(positions=[1])


def test_vocabularies_of_different_sizes_share_no_table():
    v, u = exact_pair("llama-bias")
    u.resize_token_embeddings(64, mean_resizing=False)
    u.eval()
    with pytest.raises(KrsError, match="the embedding is .* in one model and .* in the other"):
        _sweep(v, u, settings=[EMBEDDING], vocabulary="shared")
