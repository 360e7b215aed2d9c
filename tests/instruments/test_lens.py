"""The logit lens against torch's own hooks, and the account as an instrument that only describes."""

import numpy as np
import pytest
import torch

import krs
from krs.generation.forward import head_logits
from krs.hooks.anatomy import anatomy
from krs.instruments import instrument
from krs.instruments.lens import lens
from krs.instruments.logprobs import answer_tokens
from krs.instruments.verdict import Threshold, verdict
from tests.instruments.case import FACTS, sequence, tiny_case
from tests.noise import assert_same
from tests.tiny import same_state, state

PARTS = {
    "llama": lambda m: (m.model.layers, m.model.norm),
    "gpt2": lambda m: (m.transformer.h, m.transformer.ln_f),
}


@pytest.mark.parametrize("family", PARTS)
def test_the_lens_is_that_of_hooks_by_hand(family):
    case = tiny_case(family)
    model, before = case.unlearned, state(case.unlearned)
    layers, norm = PARTS[family](model)
    expected = np.zeros((len(layers), len(FACTS)))
    for i, fact in enumerate(FACTS):
        ids, start = sequence(case, fact)
        kept: list[torch.Tensor] = []

        def keep(_, __, out, kept=kept):
            kept.append(out[0] if isinstance(out, tuple) else out)

        hooks = [layer.register_forward_hook(keep) for layer in layers]
        with torch.no_grad():
            model(torch.tensor([ids]))
            for hook in hooks:
                hook.remove()
            for k, states in enumerate(kept):
                logprob = torch.log_softmax(model.lm_head(norm(states))[0], -1)
                expected[k, i] = -np.mean([float(logprob[p - 1, ids[p]]) for p in range(start, len(ids))])
    found = instrument("logit_lens").read(case)
    best = expected[:-1].mean(axis=1).argmin()
    assert_same(found.values, expected[best])
    assert_same(found.curves["NLL"]["unlearned"], expected.mean(axis=1))
    assert_same(expected[-1], answer_tokens(model, case.target.batch).nll())
    assert set(found.nulls) == {"same", "never_knew"}
    assert not np.allclose(found.nulls["same"], found.values)
    assert same_state(model, before)


@pytest.mark.parametrize("family", ["gemma2", "granite", "cohere", "gpt_neox", "opt", "falcon"])
def test_behind_the_last_layer_it_reads_the_models_own_answer(family):
    """With soft caps, scales and norms as the family has them; what differs there raises."""
    case = tiny_case(family)
    found = lens(case.unlearned, case.target)
    assert_same(found[-1], answer_tokens(case.unlearned, case.target.batch).nll())


def test_a_model_that_does_more_between_layers_and_head_is_refused():
    case = tiny_case()
    case.unlearned.model.norm.register_forward_pre_hook(lambda m, args: args[0] + 5.0 * (args[0].shape[0] > 1))
    with pytest.raises(krs.KrsError, match="nats off the answer of this LlamaForCausalLM itself"):
        lens(case.unlearned, case.target)


def test_logits_of_states_are_those_of_the_head():
    body = anatomy(tiny_case("gemma2").vanilla)
    states = torch.randn(2, 3, 16, dtype=torch.float64)
    plain = body.model.lm_head(states)
    cap = body.model.config.final_logit_softcapping
    assert_same(head_logits(body, states).detach(), (cap * torch.tanh(plain / cap)).detach())


def test_the_account_describes_and_never_votes():
    case = tiny_case()
    found = instrument("account").read(case)
    wording = case.target.wording
    options = {"tokenizer": wording.tokenizer, "n_tokens": wording.n_tokens, "progress": False}
    plain = krs.account(case.vanilla, case.unlearned, case.target.prompts, answers=case.target.answers, **options)
    np.testing.assert_allclose(found.curves["share by layer"].to_numpy(), plain.frame.to_numpy())
    components = np.array([component for component, _ in plain.parts_of])
    mine = plain.parts[:, components == "value_vectors"].sum(1) / plain.parts.sum(1)
    np.testing.assert_allclose(found.values, mine)
    whole = (found.values * plain.parts.sum(1)).sum() / plain.parts.sum()
    summed = found.curves["share by component"]
    assert whole == pytest.approx(summed.loc["value_vectors", "share"])
    others = case.unrelated
    with pytest.warns(krs.KrsWarning, match="give more than points=6"):  # random models are far apart
        beside = krs.account(case.vanilla, case.unlearned, others.prompts, answers=others.answers, **options)
    assert any(note.startswith("null unrelated: the parts of") for note in found.notes)
    np.testing.assert_allclose(summed["unrelated"], beside.by_component)
    assert len(found.nulls["unrelated"]) == len(others)
    assert np.isnan(found.knowledge)
    assert verdict({"account": found}, {"nll": Threshold(0.0, 1.0, 1.0)}).votes == ()


def test_of_experts_there_are_no_value_vectors_to_speak_of():
    case = tiny_case("moe")
    for model in (case.vanilla, case.unlearned):
        model.float()  # experts have no float64 here
    found = instrument("account").measure(case)
    assert np.isnan(found.values).all()
    assert "experts" in found.curves["share by component"].index
