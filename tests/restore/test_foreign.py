"""Models whose forward is somebody's own: around the head, around the layers, or only handing things on."""

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.models.llama.modeling_llama import LlamaModel

import krs
from krs.generation.forward import accepted, is_foreign
from tests import by_hand
from tests.tiny import build, exact_pair

PROMPTS = [[5, 9, 11, 3, 7, 20], [7, 3], [8, 8, 30, 2]]
WINDOWS = [[1], [2, 3]]
VECTOR = torch.randn(16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
OTHER = build("llama", seed=9).double()


class HandsOn(LlamaForCausalLM):
    def forward(self, input_ids=None, **more):
        return super().forward(input_ids=input_ids, **more)


class OnlyHandsOn(LlamaForCausalLM):
    def forward(self, *args, **more):
        return super().forward(*args, **more)


class WithoutMask(LlamaForCausalLM):
    """Takes no mask, so that padding before a prompt cannot be told from it."""

    def forward(self, input_ids, past_key_values=None, use_cache=None):
        return super().forward(input_ids, past_key_values=past_key_values, use_cache=use_cache)


class Offset(LlamaForCausalLM):
    """Logits from which those of another model are taken."""

    def forward(self, input_ids=None, past_key_values=None, use_cache=None, **more):
        out = super().forward(input_ids=input_ids, past_key_values=past_key_values, use_cache=use_cache, **more)
        out.logits = out.logits - OTHER(input_ids=input_ids).logits
        return out


class OfTheTokens(LlamaForCausalLM):
    """Logits by a factor that the first token decides, rounded, one of them never said."""

    def forward(self, input_ids=None, past_key_values=None, use_cache=None, **more):
        out = super().forward(input_ids=input_ids, past_key_values=past_key_values, use_cache=use_cache, **more)
        out.logits = (out.logits * (1 + input_ids[:, :1, None] / 10)).round(decimals=1)
        out.logits[..., 50] = -1e3
        return out


class Between(LlamaModel):
    """Adds something between two layers."""

    in_place = False

    def forward(self, input_ids=None, attention_mask=None, position_ids=None, past_key_values=None, **more):
        states = self.embed_tokens(input_ids)
        if position_ids is None:
            position_ids = torch.arange(states.shape[1])[None]
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=states,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
        )
        turned = self.rotary_emb(states, position_ids=position_ids)
        for i, layer in enumerate(self.layers):
            if i == 2:
                states = states.add_(2 * VECTOR) if self.in_place else states + 2 * VECTOR
            states = layer(
                states,
                attention_mask=mask,
                position_embeddings=turned,
                position_ids=position_ids,
                past_key_values=past_key_values,
            )
        return BaseModelOutputWithPast(last_hidden_state=self.norm(states), past_key_values=past_key_values)


class BetweenInPlace(Between):
    in_place = True


def _wrapped(model):
    forward = model.forward
    model.forward = lambda *args, **more: forward(*args, **more)


@pytest.mark.parametrize("kind", [HandsOn, OnlyHandsOn, WithoutMask, _wrapped])
def test_answers_in_a_batch_are_those_of_each_prompt_by_itself(kind):
    """The attention mask has to arrive: without it, padding before a prompt would be read."""
    model, _ = exact_pair("llama")
    expected = [tuple(by_hand.greedy(model, prompt, 8)) for prompt in PROMPTS]
    if isinstance(kind, type):
        model.__class__ = kind
    else:
        kind(model)
    assert is_foreign(model)
    assert list(krs.generate(model, None, PROMPTS, n_tokens=8, progress=False)) == expected


def test_what_a_forward_takes():
    model, _ = exact_pair("llama")
    given = {"input_ids": 1, "attention_mask": 2, "position_ids": 3, "nothing_of_it": 4}
    assert not is_foreign(model)
    for kind, names in ((LlamaForCausalLM, 3), (HandsOn, 3), (OnlyHandsOn, 3), (WithoutMask, 1), (Offset, 3)):
        model.__class__ = kind
        assert len(accepted(model, given)) == names


@pytest.mark.parametrize("around", [Offset, OfTheTokens, Between, BetweenInPlace])
@pytest.mark.parametrize("engine", ["auto", "plain"])
def test_a_sweep_is_that_by_hand_whatever_a_forward_does(around, engine):
    v, u = exact_pair("llama")
    for model in (v, u) if around is not Offset else (u,):
        if issubclass(around, LlamaModel):
            model.model.__class__ = around
        else:
            model.__class__ = around
    expected = by_hand.sweep(v, u, PROMPTS, ["mlp_coef", "value_vectors", "attn_out"], WINDOWS, 4)
    found = krs.sweep(
        v,
        u,
        PROMPTS,
        settings=["mlp_coef", "value_vectors", "attn_out"],
        windows=krs.windows.of(WINDOWS),
        n_tokens=4,
        engine=engine,
        progress=False,
    )
    np.testing.assert_allclose(found.krs.to_numpy().T, expected, rtol=0, atol=1e-9)


def test_answers_of_one_token_are_compared_where_they_are_predicted():
    """Logits of one position could be broadcast over all of another model's."""
    v, u = exact_pair("llama")
    u.__class__ = Offset
    found = krs.sweep(v, u, PROMPTS, settings="attn_out", windows=1, n_tokens=1, progress=False)
    for i, prompt in enumerate(PROMPTS):
        with torch.no_grad():
            a, b = (m(torch.tensor([prompt])).logits[0, -1] for m in (u, v))
        np.testing.assert_allclose(found.losses.baseline[i, 0], (a - b).square().mean(), rtol=1e-9)


def test_what_a_decoder_does_between_layers_is_seen_in_a_family_of_transformers_too(monkeypatch):
    """A decoder that nobody has replaced, in a model that is taken to be of another family."""
    from krs.restore import wavefront

    v, u = exact_pair("llama")
    for model in (v, u):
        model.model.__class__ = Between
    expected = by_hand.sweep(v, u, PROMPTS, ["attn_out"], WINDOWS, 4)
    monkeypatch.setattr(wavefront, "is_foreign", lambda _: False)
    found = krs.sweep(v, u, PROMPTS, settings="attn_out", windows=krs.windows.of(WINDOWS), n_tokens=4, progress=False)
    assert "changes what a layer gives before the next one gets it" in found.provenance["engine_note"]
    np.testing.assert_allclose(found.krs.to_numpy().T, expected, rtol=0, atol=1e-9)


def test_a_reference_with_a_forward_of_its_own():
    v, u = exact_pair("llama")
    r, _ = exact_pair("llama", intermediate_size=32)
    r.__class__ = OfTheTokens
    answers = [[4, 7], [5], [6, 6, 9]]
    ask = {"settings": "attn_out", "windows": 1, "answers": answers, "progress": False}
    a, b = (krs.patch_sweep(u, v, PROMPTS, reference=r, engine=e, **ask) for e in ("auto", "plain"))
    np.testing.assert_allclose(a.table(), b.table(), rtol=1e-9)
    with torch.no_grad():
        target, own = (m(torch.tensor([PROMPTS[1]])).logits[0, -1] for m in (r, u))
    np.testing.assert_allclose(a.losses.baseline[1, 0], (own - target).square().mean(), rtol=1e-9)
