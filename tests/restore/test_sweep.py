import copy
import functools

import numpy as np
import pytest
import torch

import krs
from krs import ATTN_OUT, MLP_COEF, VALUE_VECTORS, KrsError, windows
from krs.hooks import patched
from tests import by_hand
from tests.noise import assert_rounds_alike, assert_same, float64_throughout
from tests.restore.once import checked_once  # noqa: F401
from tests.tiny import FAMILIES, VOCAB, build, exact_pair, pair, perturbed, same_state, state

PROMPTS = [[5, 9, 11], [7, 3, 22, 8, 40, 2], [13]]
SETTINGS = ["mlp_coef", "value_vectors", "attn_out", "mlp_coef+attn_out"]
CENTRED_3 = [[0, 1], [0, 1, 2], [1, 2, 3], [2, 3]]


def _sweep(v, u, prompts=PROMPTS, **options):
    return krs.sweep(v, u, prompts, **({"windows": 3, "n_tokens": 6, "progress": False} | options))


@functools.cache
def _by_hand(name):
    """A pair, its weights, and what hooks by hand give of it, for every engine."""
    v, u = exact_pair(name)
    before = state(v), state(u)
    with float64_throughout(name):
        return v, u, before, by_hand.sweep(v, u, PROMPTS, SETTINGS, CENTRED_3, n_tokens=6)


@pytest.mark.parametrize("engine", ["plain", "wavefront"])
@pytest.mark.parametrize("name", FAMILIES)
def test_equals_hooks_written_out_by_hand_prompt_by_prompt(name, engine):
    v, u, before, expected = _by_hand(name)
    with float64_throughout(name):
        result = _sweep(v, u, engine=engine)
    assert result.provenance["engine"] == engine
    assert list(result.krs.columns) == SETTINGS
    assert_same(result.krs.to_numpy().T, expected)
    assert np.abs(expected).max() > 0.05
    assert same_state(v, before[0])
    assert same_state(u, before[1])


@pytest.mark.parametrize("engine", ["plain", "wavefront"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "olmo2", "gptj"])
def test_in_fp32_it_rounds_as_hooks_written_out_by_hand_do(name, engine):
    v, u = pair(name)
    found = _sweep(v, u, engine=engine).krs.to_numpy().T
    by_hooks = by_hand.sweep(v, u, PROMPTS, SETTINGS, CENTRED_3, n_tokens=6)
    with float64_throughout(name):
        exact = by_hand.sweep(v.double(), u.double(), PROMPTS, SETTINGS, CENTRED_3, n_tokens=6)
    assert_rounds_alike(found, exact, [by_hooks])


@pytest.mark.filterwarnings("ignore:.*scored answers are empty:krs.KrsWarning")  # random models may say EOS at once
@pytest.mark.usefixtures("checked_once")
@pytest.mark.parametrize("name", FAMILIES)
def test_a_prompt_alone_and_in_a_padded_batch_gives_the_same_losses(name):
    v, u = exact_pair(name)
    with float64_throughout(name):
        together = _sweep(v, u)
        apart = [_sweep(v, u, [prompt]) for prompt in PROMPTS]
    for i, alone in enumerate(apart):
        n = alone.losses.mask.sum()
        assert alone.answers == together.answers[i : i + 1]
        assert n == together.losses.mask[i].sum()
        assert_same(together.losses.restored[:, i, :n], alone.losses.restored[:, 0])


def test_unions_and_weights_with_activations():
    v, u = exact_pair("llama")
    everything = MLP_COEF + VALUE_VECTORS + ATTN_OUT
    result = _sweep(v, u, settings=[everything, MLP_COEF + VALUE_VECTORS], windows=windows.of([[1, 2], [3]]))
    expected = by_hand.sweep(
        v, u, PROMPTS, ["mlp_coef+value_vectors+attn_out", "mlp_coef+value_vectors"], [[1, 2], [3]], 6
    )
    assert_same(result.krs.to_numpy().T, expected)


def test_restoring_everything_gives_one_and_nothing_gives_zero_exactly():
    v = build("llama").double()
    u = perturbed(v)
    for part in ("embed_tokens", "norm"):
        u.model.get_submodule(part).load_state_dict(v.model.get_submodule(part).state_dict())
    everything = MLP_COEF + VALUE_VECTORS + ATTN_OUT
    result = _sweep(v, u, settings=[everything], windows=windows.of([[0, 1, 2, 3]]))
    assert_same(result.krs.iloc[0, 0], 1.0)
    u = copy.deepcopy(v)
    with torch.no_grad():
        u.model.layers[0].mlp.down_proj.weight.add_(0.1)
    result = _sweep(v, u, settings=[VALUE_VECTORS], windows=windows.of([[0], [1]]))
    assert_same(result.krs.iloc[0, 0], 1.0)
    assert result.krs.iloc[1, 0] == 0.0


def test_equal_models_give_nan_and_the_reason():
    v = build("llama")
    result = _sweep(v, copy.deepcopy(v))
    assert result.krs.isna().all(axis=None)
    assert "nothing was unlearned" in result.notes[0]
    assert "nothing was unlearned" in repr(result)


def test_the_memory_budget_changes_nothing_but_the_chunks():
    v, u = exact_pair("llama")
    assert_same(_sweep(v, u, memory=1).losses.restored, _sweep(v, u, memory="1GiB").losses.restored)


def test_bf16_models_are_swept_in_their_own_dtype():
    v, u = (m.to(torch.bfloat16) for m in pair("llama"))
    result = _sweep(v, u)
    assert result.provenance["vanilla"]["dtype"] == "bfloat16"
    by_hooks = by_hand.sweep(v, u, PROMPTS, SETTINGS, CENTRED_3, n_tokens=6)
    exact = _sweep(v.double(), u.double(), answers=result.answers).krs.to_numpy().T
    assert_rounds_alike(result.krs.to_numpy().T, exact, [by_hooks])


def test_positions_restrict_activations():
    v, u = exact_pair("llama")
    everywhere = _sweep(v, u, settings=[MLP_COEF]).losses.restored
    prompt = _sweep(v, u, settings=[MLP_COEF], positions="prompt").losses.restored
    both_parts = _sweep(v, u, [[5, 9, 11]], settings=[MLP_COEF], positions=range(8)).losses.restored
    alone = _sweep(v, u, [[5, 9, 11]], settings=[MLP_COEF]).losses.restored
    assert np.abs(everywhere - prompt).max() > 1e-3
    assert_same(both_parts, alone)


def test_positions_by_hand():
    v, u = exact_pair("llama")
    (prompt,) = prompts = [[5, 9, 11]]
    result = _sweep(v, u, prompts, settings=[ATTN_OUT], windows=windows.of([[1]]), positions=[-1])
    answer = by_hand.greedy(v, prompt, 6)
    ids = torch.tensor([prompt + answer[:-1]])
    kept = by_hand._vanilla_values(v, ids, 4)[1]["attn_out", 1]

    def at_two(_, __, out):
        out = out.clone()
        out[:, 2] = kept[:, 2]
        return out

    with torch.no_grad():
        target = v(ids).logits[0, 2:]
        handle = u.model.layers[1].self_attn.o_proj.register_forward_hook(at_two)
        got = u(ids).logits[0, 2:]
        handle.remove()
    expected = ((got - target).double() ** 2).mean(-1).numpy()
    assert_same(result.losses.restored[0, 0], expected)


def test_ctrl_c_leaves_the_models_as_they_were_and_loses_nothing(tmp_path, monkeypatch):
    v, u = pair("llama")
    before, expected = state(u), _sweep(v, u, engine="plain")
    file = tmp_path / "part.krs"
    from krs.restore import plain

    real, calls = plain.logits_at, []

    def interrupted(*args):
        calls.append(1)
        if len(calls) == 9:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(plain, "logits_at", interrupted)
    with pytest.raises(KeyboardInterrupt) as stop:
        _sweep(v, u, checkpoint=file, engine="plain")
    assert same_state(u, before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in u.modules())
    partial = stop.value.partial
    assert not partial.complete
    assert "interrupted" in repr(partial)
    assert np.isfinite(partial.krs.to_numpy()).sum() == 6  # 8 calls: the two base runs and six restorations
    assert "the same call goes on from there" in stop.value.__notes__[0]

    monkeypatch.setattr(plain, "logits_at", lambda *args: calls.append(1) or real(*args))
    calls.clear()
    resumed = _sweep(v, u, checkpoint=file, engine="plain")
    assert len(calls) == 2 + 10
    np.testing.assert_array_equal(resumed.losses.restored, expected.losses.restored)
    calls.clear()
    again = _sweep(v, u, checkpoint=file, engine="plain")
    assert not calls
    np.testing.assert_array_equal(again.krs, expected.krs)


def test_a_checkpoint_of_another_sweep_is_refused(tmp_path):
    v, u = pair("llama")
    file = tmp_path / "part.krs"
    _sweep(v, u, checkpoint=file)
    with pytest.raises(KrsError, match=r"holds another sweep. What differs: the unlearned model \(weights\)"):
        _sweep(v, perturbed(v, seed=7), checkpoint=file)
    with pytest.raises(KrsError, match="holds another sweep. What differs: windows"):
        _sweep(v, u, checkpoint=file, windows=1)


class _Bpe:
    """Stands in for a tokenizer where only decoding and encoding again is needed."""

    name_or_path = "test"

    def decode(self, ids, skip_special_tokens=False):
        return " ".join(map(str, ids))

    def __call__(self, text, add_special_tokens=True):
        return {"input_ids": [int(t) for t in text.split()]}


def test_paper_code_scoring_by_hand():
    v, u = exact_pair("llama")
    result = _sweep(v, u, settings=[ATTN_OUT], windows=windows.of([[2]]), scoring="paper-code", tokenizer=_Bpe())
    ratios = []
    for prompt in PROMPTS:
        answer = [t for t in by_hand.greedy(v, prompt, 6) if t != 1]
        length = max(len(answer) - (6 - len(prompt)), 1)
        ids = torch.tensor([prompt + answer])
        target, kept = by_hand._vanilla_values(v, ids, 4)
        restored = by_hand._restored_logits(u, v, ids, kept, "attn_out", [2])
        with torch.no_grad():
            base = u(ids).logits[0]
        loss, bottom = (((x - target)[-length:] ** 2).mean().item() for x in (restored, base))
        ratios.append(1 - loss / bottom)
    assert_same(result.krs.iloc[0, 0], np.mean(ratios))
    assert result.scoring == "paper-code"


def _same_storage(v, u):
    u.model.layers[1].mlp.down_proj.weight = v.model.layers[1].mlp.down_proj.weight


def _wider(u):
    u.model.layers[2].mlp.down_proj.weight.data = torch.randn(16, 30)


def _shared_layers(u):
    u.model.layers[2].mlp.down_proj.weight = u.model.layers[0].mlp.down_proj.weight
    return {"settings": "value_vectors", "windows": 1}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda v, u: {"prompts": []}, "no prompts"),
        (lambda v, u: {"prompts": [[1, 2], []]}, "prompt 1 is empty"),
        (lambda v, u: {"prompts": ["", "a"]}, "prompt 0 is empty"),
        (lambda v, u: {"prompts": [[{"role": "user", "content": " "}]]}, "prompt 0 is empty"),
        (
            lambda v, u: {"prompts": [[5] * 60]},
            "60 tokens; with n_tokens=6 it is longer than the model's context of 64",
        ),
        (
            lambda v, u: {"prompts": [[1, VOCAB]]},
            f"token id {VOCAB}, but the model's vocabulary has {VOCAB} entries",
        ),
        (lambda v, u: {"prompts": ["text"]}, "no tokenizer was found"),
        (lambda v, u: {"scoring": "paper-code"}, "no tokenizer was found"),
        (lambda v, u: {"u": v}, "the same object"),
        (lambda v, u: {"u": build("gpt2")}, "differ in architecture: llama and gpt2"),
        (lambda v, u: {"u": build("llama", num_hidden_layers=3)}, "number of layers: 4 and 3"),
        (lambda v, u: {"u": build("llama", hidden_size=32)}, r"width \(hidden size\): 16 and 32"),
        (lambda v, u: {"u": build("llama", vocab_size=70)}, "vocabulary: 61 and 70"),
        (
            lambda v, u: {"u": build("llama", intermediate_size=30)},
            "shape of 'mlp.down_proj.weight' in layer 0",
        ),
        (lambda v, u: _wider(u), "shape of 'mlp.down_proj.weight' in layer 2"),
        (lambda v, u: {"u": u.to(torch.bfloat16)}, "dtype: float32 and bfloat16"),
        (lambda v, u: _same_storage(v, u), "share the storage of 'model.layers.1.mlp.down_proj.weight'"),
        (lambda v, u: u.train() and None, r"unlearned is in training mode.*call unlearned.eval\(\)"),
        (lambda v, u: v.model.layers[2].train() and None, "vanilla is in training mode .at 'model.layers.2'"),
        (lambda v, u: {"u": torch.compile(u, backend="eager")}, "unlearned is compiled"),
        (lambda v, u: {"u": 3}, "unlearned is a int, not a model"),
        (lambda v, u: {"v": u.model, "u": v}, "pass the causal LM"),
        (lambda v, u: {"v": "no/such/dir/here"}, "no such path: 'no/such/dir/here'"),
        (lambda v, u: {"v": "./nowhere"}, "no such path"),
        (lambda v, u: {"v": "nowhere.gguf"}, "no GGUF file at"),
        (lambda v, u: {"windows": 0}, "a window of 0 layers"),
        (lambda v, u: {"windows": windows.of([[3, 4]])}, "layer 4 .* out of range"),
        (lambda v, u: {"settings": ["mlp"]}, "unknown point 'mlp'"),
        (lambda v, u: {"n_tokens": 0}, "at least one answer token"),
        (lambda v, u: {"n_tokens": 2.0}, r"n_tokens=2.0: give a whole number, which a float \(2.0\) is not"),
        (lambda v, u: {"n_tokens": True}, "n_tokens=True: give a whole number"),
        (lambda v, u: {"n_tokens": None}, "n_tokens=None: give a whole number"),
        (lambda v, u: _shared_layers(u), "value_vectors at layer 0 is shared with layer 2"),
        (lambda v, u: _shared_layers(u) | {"settings": "weights"}, "weights at layer 0 is shared with layer 2"),
        (lambda v, u: {"scoring": "mine"}, "scoring='mine': choose one of"),
        (lambda v, u: {"engine": "fast"}, "engine='fast': choose one of 'auto', 'wavefront', 'plain'"),
        (lambda v, u: {"offload": "disk"}, "offload= is for models given by name"),
        (lambda v, u: {"answers": [[3]]}, "answers= has 1 answer for 3 prompts"),
        (lambda v, u: {"answers": [[3], [], [4]]}, "answer 1 is empty"),
        (lambda v, u: {"answers": ["a", "b", "c"]}, "answers= has text, and no tokenizer was found"),
        (lambda v, u: {"answers": [[3], [VOCAB], [4]]}, f"answer 1 has the token id {VOCAB}"),
        (lambda v, u: {"memory": "lots"}, "memory='lots'"),
        (lambda v, u: {"memory": -1}, "positive number of bytes"),
        (lambda v, u: {"positions": [99]}, "position 99 is out of range"),
    ],
)
def test_bad_input_has_its_own_error_before_any_model_runs(spoil, message, as_a_user, monkeypatch):
    v, u = pair("llama")
    given = {"v": v, "u": u, "prompts": PROMPTS} | (spoil(v, u) or {})
    ran = []
    for model in (v, u):
        model.register_forward_pre_hook(lambda *_: ran.append(1))
    with pytest.raises(KrsError, match=message):
        _sweep(given.pop("v"), given.pop("u"), given.pop("prompts"), **given)
    assert not ran


def test_moe_and_unknown_families_are_refused_before_any_model_runs():
    v, u = build("moe"), build("moe", seed=1)
    with pytest.raises(KrsError, match="several experts"):
        _sweep(v, u)
    assert np.isfinite(_sweep(v, u, settings=[ATTN_OUT]).krs.to_numpy()).all()
    v.config.model_type = "unheard_of"
    with pytest.raises(KrsError, match="unknown model family 'unheard_of'"):
        _sweep(v, u)


def test_a_sweep_inside_a_patched_block_sees_the_patched_model():
    v, u = pair("llama")
    with patched(u, ATTN_OUT.at(0).map(lambda a: 0 * a)):
        changed = _sweep(v, u, settings=[MLP_COEF])
    assert np.abs(changed.losses.baseline - _sweep(v, u, settings=[MLP_COEF]).losses.baseline).max() > 1e-3
