"""Objectives, targets, and the algebra of spreading them, each beside its plain twin."""

import math

import pytest
import torch

import krs
from krs import KrsError
from krs.hooks.anatomy import anatomy
from krs.hooks.overrides import override_forward
from krs.unlearn.memit.branch import projection_change
from krs.unlearn.memit.config import MemitEmptyConfig
from krs.unlearn.memit.forward import BLOCK_OUT, added, behind, read_at, scored_logits
from krs.unlearn.memit.objectives import Entropy, Likelihood, entropy
from krs.unlearn.memit.places import positions_of, prompts_batch, site
from krs.unlearn.memit.requests import to_requests
from krs.unlearn.memit.spread import key_weights
from krs.unlearn.memit.targets import targets
from tests.noise import assert_same, float64_throughout
from tests.tiny import build
from tests.unlearn.memit_case import POST_NORM, REQUESTS
from tests.unlearn.tiny_tokenizer import tiny_tokenizer


def _places(contexts=("{}",)):
    return [p for one in site(to_requests(REQUESTS), contexts, tiny_tokenizer(), 50) for p in one.places]


def test_entropy_is_that_of_one_softmax_in_fp32_and_has_a_gradient():
    logits = torch.tensor([[12.0, 0.0, -20.0, 9.0]], requires_grad=True)
    wide = logits.detach().double()
    p = torch.softmax(wide, -1)
    with float64_throughout():
        assert_same(entropy(wide), -(p * p.log()).sum(-1))
        assert_same(entropy(torch.zeros(7, dtype=torch.float64)), math.log(7))
    entropy(logits.to(torch.bfloat16)).sum().backward()
    assert logits.grad.abs().max() > 0


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "gptj", "falcon", "gemma2", "cohere", "granite"])
@float64_throughout()
def test_the_entropy_objective_norms_hidden_states_once_and_ends_with_the_real_logits(name):
    model = build(name).double()
    body, what, (place,) = anatomy(model), Entropy(), _places()[:1]
    rows = what.rows([place], tiny_tokenizer())
    with torch.no_grad():
        found = what.loss(body, rows, 1)
        out = model(input_ids=torch.tensor([place.ids]), output_hidden_states=True, use_cache=False)
        norm, head = model.get_submodule(body.family.final_norm), model.get_output_embeddings()
        logits = [head(norm(h[0, -1])) for h in out.hidden_states[2:-1]]
    scale = {"cohere": model.config.logit_scale if name == "cohere" else 1, "granite": 1 / 2.0}.get(name, 1)
    logits = [x * scale for x in logits]
    if name == "gemma2":
        logits = [torch.tanh(x / 30.0) * 30.0 for x in logits]
    expected = torch.stack([entropy(x) for x in [*logits, out.logits[0, -1]]])
    assert len(expected) == 3
    assert_same(found, -expected.mean()[None])


@float64_throughout()
def test_the_likelihood_is_a_mean_over_the_words_tokens_and_rows_do_not_see_padding():
    model = build("llama").double()
    what, places, tokenizer = Likelihood("the blue dog"), _places(), tiny_tokenizer()
    with torch.no_grad():
        found = what.loss(anatomy(model), what.rows(places, tokenizer), 0)
        for place, value in zip(places, found, strict=True):
            ids = [*place.ids, *tokenizer.convert_tokens_to_ids(["the", "blue", "dog"])]
            scores = torch.log_softmax(model(input_ids=torch.tensor([ids])).logits[0], -1)
            expected = -sum(scores[p - 1, ids[p]] for p in range(len(place.ids), len(ids))) / 3
            assert_same(value, expected)


def test_delta_is_added_at_the_subject_alone():
    model = build("falcon").double()
    body, places = anatomy(model), _places()
    batch, positions = prompts_batch(places), positions_of(places)
    change = torch.randn(len(places), 16, dtype=torch.float64)
    before = read_at(body, batch, positions, [(BLOCK_OUT, 2)])[BLOCK_OUT, 2]
    with added(body.layers[2], positions, change, (3, max(map(len, batch.tokens)))):
        after = read_at(body, batch, positions, [(BLOCK_OUT, 2)])[BLOCK_OUT, 2]
        other = read_at(body, batch, positions - 1, [(BLOCK_OUT, 2)])[BLOCK_OUT, 2]
    assert_same(after - before, change)
    assert_same(other, read_at(body, batch, positions - 1, [(BLOCK_OUT, 2)])[BLOCK_OUT, 2])


class _Bar:
    def update(self, n=1):
        pass


def _targets(model, layer=2, contexts=("{}",), what=None, **settings):
    config = MemitEmptyConfig(**({"steps": 3} | settings))
    sited = site(to_requests(REQUESTS), contexts, tiny_tokenizer(), 50)
    return targets(anatomy(model), layer, sited, what or Likelihood("blue"), config, tiny_tokenizer(), _Bar())


@float64_throughout()
def test_targets_are_found_by_adam_on_the_loss_as_written():
    """One request, three steps, written out with a hook of one's own."""
    model = build("llama").double()
    found = _targets(model, kl_weight=0.5, weight_decay=0.2)
    tokenizer = tiny_tokenizer()
    prompt = torch.tensor([tokenizer("who is the cat of")["input_ids"]])
    essence = torch.tensor([tokenizer("cat is a")["input_ids"]])
    word = tokenizer.convert_tokens_to_ids("blue")
    delta = torch.zeros(16, dtype=torch.float64, requires_grad=True)

    def last(ids, position):
        def plus(_, __, out):
            return out.index_put((torch.tensor([0]), torch.tensor([position])), delta[None], accumulate=True)

        handle = model.model.layers[2].register_forward_hook(plus)
        scores = torch.log_softmax(model(input_ids=ids).logits[0, -1], -1)
        handle.remove()
        return scores

    z0 = model(input_ids=prompt, output_hidden_states=True).hidden_states[3][0, 3].detach()
    usual = last(essence, 0).detach()
    adam = torch.optim.Adam([delta], lr=0.5)
    for _ in range(3):
        adam.zero_grad()
        now = last(essence, 0)
        kl = (now.exp() * (now - usual)).sum()
        (-last(prompt, 3)[word] + 0.5 * kl + 0.2 * delta.norm() / z0.norm() ** 2).backward()
        adam.step()
        with torch.no_grad():
            delta *= min(1.0, 4 * z0.norm() / delta.norm())
    assert_same(found.z[0] - found.z0[0], delta)
    assert_same(found.after[0], -last(prompt, 3)[word])


@float64_throughout()
def test_delta_is_clamped():
    found = _targets(build("llama").double(), clamp=0.1)
    assert_same((found.z - found.z0).norm(dim=-1), 0.1 * found.z0.norm(dim=-1))


def test_a_heavy_kl_keeps_the_subject_what_it_was():
    light, heavy = (_targets(build("llama"), kl_weight=w, steps=10) for w in (0.0, 100.0))
    assert (heavy.after > light.after).all()


@float64_throughout()
def test_of_several_contexts_the_mean_counts():
    model = build("llama").double()
    found = _targets(model, contexts=("{}", "and the {}"))
    apart = [_targets(model, contexts=(context,)) for context in ("{}", "and the {}")]
    assert_same(found.z0, (apart[0].z0 + apart[1].z0) / 2)
    assert_same(found.before, (apart[0].before + apart[1].before) / 2)


def test_woodbury_is_the_inverse():
    g = torch.Generator().manual_seed(0)
    a, keys = (torch.randn(12, m, generator=g, dtype=torch.float64) for m in (30, 3))
    keys = torch.cat([keys, keys[:, :1]], dim=1)
    moment = a @ a.T / 30
    for weight in (1e-3, 1.0, 15000.0):
        plain = torch.linalg.inv(weight * moment + keys @ keys.T) @ keys
        assert_same(key_weights(moment, keys, weight), plain)


@pytest.mark.parametrize("name", ["llama", "granite", *POST_NORM, "cohere", "gpt2", "falcon", "opt", "bloom"])
def test_the_projections_change_moves_the_block_as_far_as_it_can_be_moved(name):
    """What a small change of the projection's output did to the block's is asked for again, and found."""
    model = build(name)
    body, places = anatomy(model), _places()
    batch, positions = prompts_batch(places), positions_of(places)
    shape = (len(places), max(map(len, batch.tokens)))
    (projection,) = body.modules(krs.VALUE_VECTORS, 1)

    def moved(change):
        with added(projection, positions, change, shape):
            return read_at(body, batch, positions, [(BLOCK_OUT, 1)])[BLOCK_OUT, 1]

    still, there = moved(torch.zeros(3, 16)), moved(0.3 * torch.randn(3, 16))
    found = projection_change(body, 1, batch, positions, (there - still).double())
    left = (moved(found.float()) - there).norm(dim=-1) / (there - still).norm(dim=-1)
    assert (left < 1e-2).all(), left


@float64_throughout()
def test_granites_multiplier_is_measured():
    model = build("granite").double()
    body, places = anatomy(model), _places()
    wanted = torch.randn(3, 16, dtype=torch.float64)
    found = projection_change(body, 1, prompts_batch(places), positions_of(places), wanted)
    assert_same(found, 2 * wanted)
    nothing = torch.zeros(3, 16, dtype=torch.float64)
    assert torch.equal(projection_change(body, 1, prompts_batch(places), positions_of(places), nothing), nothing)


def test_without_a_norm_before_the_head_there_is_nothing_to_project_with():
    body = anatomy(build("opt", do_layer_norm_before=False))
    with pytest.raises(KrsError, match="has no 'model.decoder.final_layer_norm', the norm before the head"):
        Entropy().check(body, 1)


@pytest.mark.parametrize("name", ["llama", "falcon", "bloom", "gpt2", "opt", "mpt", "gemma3", "glm4"])
def test_beginning_behind_a_layer_gives_the_same_logits_and_hooks_on_it_still_act(name):
    model = build(name)
    body, places = anatomy(model), _places()
    batch, positions, change = prompts_batch(places), positions_of(places), torch.randn(3, 16)
    shape = (3, max(map(len, batch.tokens)))
    ran = []
    with torch.no_grad():
        plain = scored_logits(body, batch)
        with added(body.layers[1], positions, change, shape):
            moved = scored_logits(body, batch)
        start = behind(body, batch, 1)
        handle = body.modules(krs.MLP_COEF, 1)[0].register_forward_hook(lambda *_: ran.append(1))
        with override_forward(start):
            assert torch.equal(scored_logits(body, batch), plain)
            with added(body.layers[1], positions, change, shape):
                assert torch.equal(scored_logits(body, batch), moved)
        assert not ran
        handle.remove()
    assert not torch.equal(plain, moved)
