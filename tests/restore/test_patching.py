"""Patching between models: a third one as the reference, and a donor that reads other prompts."""

import functools

import numpy as np
import pytest
import torch

import krs
from krs import ATTN_OUT, EMBEDDING, MLP_COEF, RESID, UNEMBEDDING, VALUE_VECTORS, KrsError, windows
from tests import by_hand
from tests.noise import assert_same, float64_throughout
from tests.tiny import build, exact_pair, perturbed

PROMPTS = [[5, 9, 11], [7, 3, 22, 8, 40, 2], [13]]
SETTINGS = [MLP_COEF, VALUE_VECTORS + ATTN_OUT, RESID, EMBEDDING, UNEMBEDDING]
WINDOWS = windows.of([[1, 2], [3]])


@functools.cache
def _three(name):
    v, u = exact_pair(name)
    return u, v, perturbed(v, seed=5, scale=0.1)


def _patch(recipient, donor, engine="auto", **options):
    options = {"settings": SETTINGS, "windows": WINDOWS, "n_tokens": 5, "progress": False} | options
    return krs.patch_sweep(recipient, donor, PROMPTS, engine=engine, **options)


def _scored(prompt, answer):
    return torch.tensor([prompt + answer]), slice(len(prompt) - 1, len(prompt) + len(answer) - 1)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "phi"])
def test_a_third_model_as_the_reference_through_both_engines(name):
    u, v, third = _three(name)
    with float64_throughout(name):
        fast, plain = (_patch(u, v, e, reference=third, measures=["kl", "top1"]) for e in ("wavefront", "plain"))
    assert [p["engine"] for p in fast.provenance["parts"]] == ["wavefront"]
    for measure in fast.measures:
        assert_same(fast.table(measure).to_numpy(), plain.table(measure).to_numpy())
        ours, twin = fast.losses.of(measure), plain.losses.of(measure)
        assert_same(ours.donor, twin.donor)
        assert_same(ours.recipient, twin.recipient)


def test_a_third_model_by_hand():
    """Recovery of the residual stream of the last layer: from the recipient's distance to the donor's."""
    u, v, third = _three("llama")
    found = _patch(u, v, reference=third, settings=[RESID], windows=windows.of([[3]]))
    loss = np.zeros(3)
    for prompt in PROMPTS:
        ids, scored = _scored(prompt, by_hand.greedy(third, prompt, 5))
        with torch.no_grad():
            target = third(ids).logits[0, scored]
            states = v.model(ids, output_hidden_states=True)
            layer = []
            hook = v.model.layers[3].register_forward_hook(lambda _, __, out, kept=layer: kept.append(out))
            v(ids)
            hook.remove()
            hook = u.model.layers[3].register_forward_hook(lambda *_, kept=layer: kept[0])
            restored = u(ids).logits[0, scored]
            hook.remove()
            runs = (u(ids).logits[0, scored], v(ids).logits[0, scored], restored)
            loss += [(run - target).pow(2).mean(-1).sum().item() for run in runs]
    assert states is not None
    start, end, restored = loss
    np.testing.assert_allclose(found.recovery().iloc[0, 0], (restored - start) / (end - start), rtol=0, atol=1e-9)
    assert found.direction == "patch"
    assert found.provenance["answers"] == "reference, greedy"
    with pytest.raises(KrsError, match=r"has a third model as its reference.*result.recovery\(\)"):
        found.krs  # noqa: B018
    assert repr(found).startswith("SweepResult: patched, 1 setting")


def test_a_third_model_may_be_of_another_architecture_and_size():
    u, v, _ = _three("llama")
    third = build("gpt2", n_embd=24, n_layer=2).double()
    fast, plain = (_patch(u, v, e, reference=third) for e in ("wavefront", "plain"))
    assert_same(fast.recovery().to_numpy(), plain.recovery().to_numpy())
    assert fast.provenance["engine"] == "wavefront"


def test_a_reference_that_is_the_donor_or_the_recipient_is_no_third():
    u, v, _ = _three("llama")
    assert _patch(u, v, reference=v).krs.equals(_patch(u, v).krs)
    assert _patch(u, v, reference=u).direction == "transplant"


def test_references_that_cannot_be(tmp_path):
    u, v, third = _three("llama")
    with pytest.raises(KrsError, match="the reference and vanilla have vocabularies of different sizes"):
        _patch(u, v, reference=build("llama", vocab_size=70).double())
    with pytest.raises(KrsError, match="unlearned and reference share the storage"):
        _patch(u, v, reference=_sharing(u))
    with pytest.raises(KrsError, match="reference is in training mode"):
        _patch(u, v, reference=perturbed(v).train())
    with pytest.raises(KrsError, match="has its reference, the vanilla model"):
        krs.sweep(v, u, PROMPTS, reference=third, direction="transplant")
    _patch(u, v, reference=third, checkpoint=tmp_path / "part.krs")
    with pytest.raises(KrsError, match=r"the reference model \(given there only\)"):
        _patch(u, v, checkpoint=tmp_path / "part.krs")
    with pytest.raises(KrsError, match="the reference model"):
        _patch(u, v, reference=perturbed(v, seed=9), checkpoint=tmp_path / "part.krs")


def _sharing(model):
    other = build("llama").double()
    other.model.embed_tokens.weight = model.model.embed_tokens.weight
    return other


DONOR_PROMPTS = {
    "same lengths": ([[6, 2, 30], [1, 2, 3, 4, 5, 6], [50]], None),
    "longer": ([[6, 2, 30, 31, 32], [9, 1, 2, 3, 4, 5, 6], [50, 51, 52, 53]], None),
    "shorter": ([[30], [4, 5], [50, 3]], [-1]),
    "mixed, scored": ([[30], [4, 5, 9, 9, 9, 9, 9, 9], [50]], "scored"),
}


def _interchange_by_hand(u, v, donors, positions):
    """MLP coefficients of layers 1 and 2 at the position that is as far from the answer, a prompt at a time."""
    loss, base = 0.0, 0.0
    for prompt, donor in zip(PROMPTS, donors, strict=True):
        answer = by_hand.greedy(v, prompt, 5)
        ids, scored = _scored(prompt, answer)
        theirs = torch.tensor([donor + answer])
        wanted = range(ids.shape[1]) if positions is None else range(scored.start, scored.stop)
        wanted = [len(prompt) - 1] if positions == [-1] else wanted
        kept, handles = {}, []
        for layer in (1, 2):

            def keep(_, args, layer=layer, kept=kept):
                kept[layer] = args[0].clone()

            handles.append(v.model.layers[layer].mlp.down_proj.register_forward_pre_hook(keep))
        with torch.no_grad():
            v(theirs)
            for handle in handles:
                handle.remove()
            target = v(ids).logits[0, scored]
            base += (u(ids).logits[0, scored] - target).pow(2).mean(-1).sum().item()
            handles = []
            for layer in (1, 2):

                def put(_, args, layer=layer, ids=ids, theirs=theirs, wanted=wanted, kept=kept):
                    new = args[0].clone()
                    for p in wanted:
                        new[0, p] = kept[layer][0, p - ids.shape[1] + theirs.shape[1]]
                    return (new,)

                handles.append(u.model.layers[layer].mlp.down_proj.register_forward_pre_hook(put))
            loss += (u(ids).logits[0, scored] - target).pow(2).mean(-1).sum().item()
            for handle in handles:
                handle.remove()
    return 1 - loss / base


@pytest.mark.parametrize("case", sorted(DONOR_PROMPTS))
def test_activations_of_other_prompts_by_hand(case):
    u, v, _ = _three("llama")
    donors, positions = DONOR_PROMPTS[case]
    options = {"donor_prompts": donors, "positions": positions, "settings": [MLP_COEF]}
    found = _patch(u, v, windows=windows.of([[1, 2]]), **options)
    expected = _interchange_by_hand(u, v, donors, positions)
    np.testing.assert_allclose(found.recovery().iloc[0, 0], expected, rtol=0, atol=1e-9)
    assert found.provenance["engine"] == "plain"
    assert "the donor reads other prompts" in found.provenance["engine_note"]


def test_the_donors_own_prompts_given_again_change_nothing():
    u, v, _ = _three("gpt2")
    with float64_throughout("gpt2"):
        again, usual = _patch(u, v, donor_prompts=PROMPTS), _patch(u, v, "plain")
    assert_same(again.recovery().to_numpy(), usual.krs.to_numpy())


def test_donor_prompts_that_do_not_fit():
    u, v, _ = _three("llama")
    short = [[30], [4, 5], [50]]
    with pytest.raises(KrsError, match="donor prompt 0 has 1 tokens and the recipient's 3: .* position 0 has no"):
        _patch(u, v, donor_prompts=short)
    with pytest.raises(KrsError, match="position 0 has no counterpart"):
        _patch(u, v, donor_prompts=short, positions=[0], settings=[RESID])
    with pytest.raises(KrsError, match="has 2 prompts for 3 of the recipient"):
        _patch(u, v, donor_prompts=short[:2])
    with pytest.raises(KrsError, match="changes nothing where only weights"):
        _patch(u, v, donor_prompts=short, settings=[VALUE_VECTORS])
    with pytest.raises(KrsError, match="engine='wavefront' is not exact here: the donor reads other prompts"):
        _patch(u, v, "wavefront", donor_prompts=PROMPTS)
    with pytest.raises(KrsError, match="token id 61"):
        _patch(u, v, donor_prompts=[[61, 2, 2], [2] * 6, [2]])
