import copy

import numpy as np
import pytest

import krs
from krs.instruments import Case, Fact, Instrument, Reading, as_facts, instrument, instruments, read_facts
from krs.instruments.facts import write_facts
from krs.instruments.nulls import effect, null_cases, of_equal_effect, random_change
from krs.instruments.quantise import quantised, round_to_nearest
from krs.instruments.reading import interval, smallest_difference
from tests.adapters import adapted
from tests.instruments.case import FACTS, tiny_case
from tests.noise import assert_same
from tests.packed import Packed
from tests.tiny import same_state, state
from tests.unlearn.tiny_tokenizer import tiny_tokenizer


def test_every_instrument_reads_a_tiny_case_under_its_nulls_and_leaves_the_models():
    case = tiny_case()
    before = [state(m) for m in (case.vanilla, case.unlearned, case.retain)]
    for name in instruments():
        found = instrument(name).read(case)
        assert found.values.shape == (len(FACTS),), name
        assert found.nulls, name
        again = Reading.from_json(found.as_json())
        np.testing.assert_array_equal(again.values, found.values)
        assert repr(again) == repr(found)
    for model, was in zip((case.vanilla, case.unlearned, case.retain), before, strict=True):
        assert same_state(model, was)


def test_an_unknown_instrument_is_named_with_the_nearest():
    with pytest.raises(krs.KrsError, match="unknown instrument 'usd'.*Did you mean 'uds'"):
        instrument("usd")


def test_what_lacks_its_control_says_so():
    with pytest.raises(krs.KrsError, match="'uds' does not apply here: it needs retain"):
        instrument("uds").read(tiny_case(retain=False))


def test_a_random_change_has_the_sizes_of_the_change_and_one_of_equal_effect_moves_the_logits_as_far():
    case = tiny_case()
    changed = dict(random_change(case).named_parameters())
    theirs = dict(case.unlearned.named_parameters())
    for name, parameter in case.vanilla.named_parameters():
        one, other = (theirs[name] - parameter).flatten(), (changed[name] - parameter).flatten()
        np.testing.assert_allclose(one.detach().sort().values, other.detach().sort().values, atol=1e-12)
    wanted = effect(case.vanilla, case.unlearned, case.target.batch)
    model, scale = of_equal_effect(case)
    assert effect(case.vanilla, model, case.target.batch) == pytest.approx(wanted, rel=0.1)
    assert scale > 0


def test_nulls_that_a_case_has_nothing_for_are_left_out():
    assert [name for name, _ in null_cases(["same", "never_knew"], tiny_case(retain=False))] == ["same"]


def test_rounding_is_to_the_nearest_of_the_levels_in_each_group_and_norms_stay():
    import torch

    weight = torch.randn(5, 10, dtype=torch.float64)
    for bits in (4, 8):
        found = round_to_nearest(weight, bits, group=4)
        for part, rounded in zip(weight.split(4, 1), found.split(4, 1), strict=True):
            step = part.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
            assert ((rounded - part).abs() <= step / 2 + 1e-6).all()
            np.testing.assert_allclose((rounded / step).round(), rounded / step, atol=1e-4)
    case = tiny_case()
    after = dict(quantised(case.unlearned, 4).named_parameters())
    moved = {n for n, p in case.unlearned.named_parameters() if not torch.equal(p, after[n])}
    assert moved
    assert not any("norm" in n or "embed" in n for n in moved)


def test_a_bootstrap_interval_covers_the_mean_as_often_as_it_says():
    draw = np.random.default_rng(0)
    inside = [low <= 0 <= high for low, high in (interval(draw.normal(size=30), seed=i) for i in range(200))]
    assert 0.88 <= np.mean(inside) <= 0.99


def test_the_smallest_difference_is_found_as_often_as_the_power_says():
    draw = np.random.default_rng(0)
    values = draw.normal(size=40)
    shift = smallest_difference(values / values.std(ddof=1))
    shown = [interval(draw.normal(size=40) + shift, seed=i)[0] > 0 for i in range(200)]
    assert 0.7 <= np.mean(shown) <= 0.92


def test_a_difference_is_paired_where_facts_are_the_same():
    values = np.arange(20.0)
    found = Reading("x", values, "", "high", {"same": values - 1, "unrelated": values[:5]})
    assert found.against("same") == (1, 1, 1)
    mean, low, high = found.against("unrelated")
    assert low < mean < high
    as_many = Reading("x", values, "", "high", {"unrelated": values - 1})  # other facts, though there are as many
    assert as_many.against("unrelated")[1] < 0


def test_facts_come_as_pairs_objects_and_files(tmp_path):
    file = tmp_path / "facts.jsonl"
    file.write_text(write_facts(FACTS), encoding="utf-8")
    assert read_facts(file) == FACTS
    assert as_facts([("who", "a cat"), {"prompt": "who", "answer": "a cat"}]) == (Fact("who", "a cat"),) * 2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "the target has no facts"),
        (["who"], "target fact 0 is a str: give a pair"),
        ([("who", "")], "target fact 0 has no answer"),
        ([{"question": "who", "answer": "a cat", "key": "dog"}], "its key 'dog' is not in its answer"),
        ([{"question": "who", "answer": "a cat", "wrong": "dog"}], "target fact 0, its wrong, is a str"),
        ([{"question": 3, "answer": "a cat"}], "target fact 0, 'question', is an int"),
        ([Fact("who", "a cat", key="dog")], "its key 'dog' is not in its answer"),
        ([("who", "...")], "has no words that could be found in an answer"),
        ([Fact("who", "a cat", paraphrases=("",))], "its paraphrases, has an empty text"),
        ([Fact("who", "a cat", wrong=("a dog", "a cat "))], "has its right answer 'a cat' among the wrong ones"),
    ],
)
def test_facts_that_are_none_are_named(given, message, as_a_user):
    with pytest.raises(krs.KrsError, match=message):
        as_facts(given)


def test_a_key_is_sought_without_the_blanks_around_it():
    assert as_facts([Fact("who", "It was a cat.", key=" a cat")])[0].sought == "a cat"


@pytest.mark.parametrize("name", ["quantise_4", "relearn", "nll"])
def test_an_adapters_model_reads_as_its_merged_self(name):
    whole = tiny_case()
    model = adapted(whole.vanilla, "lora").double()
    read = []
    for unlearned in (model, copy.deepcopy(model).merge_and_unload()):
        case = Case.make(whole.vanilla, unlearned, tiny_tokenizer(), FACTS, (), model, chat=False, n_tokens=8)
        read.append(instrument(name).read(case))
    assert_same(read[0].values, read[1].values)
    assert_same(read[0].nulls["never_knew"], read[1].values)  # the adapter's model as the retain model


def test_packed_weights_are_neither_rounded_nor_taught_nor_shuffled():
    case = tiny_case()
    for model in (case.vanilla, case.unlearned):
        model.model.layers[1].mlp.down_proj = Packed(model.model.layers[1].mlp.down_proj)
    for copied in (lambda: quantised(case.unlearned, 4), lambda: random_change(case)):
        with pytest.raises(krs.KrsError, match="'model.layers.1.mlp.down_proj' is packed"):
            copied()
    with pytest.raises(krs.KrsError, match="relearning needs a copy with ordinary weights"):
        instrument("relearn").measure(case)


def test_a_user_adds_an_instrument():
    class Length(Instrument):
        unit, knows = "tokens", "high"

        def measure(self, case):
            return self.reading([len(a) for a in case.target.answers])

    assert instrument(Length()).read(tiny_case()).values.tolist() == [6, 5, 6, 5]


def test_the_score_is_that_of_coefficients_and_attention_together_at_their_best_window():
    case = tiny_case()
    found = instrument("krs").measure(case)
    result = krs.sweep(
        case.vanilla,
        case.unlearned,
        case.target.prompts,
        answers=case.target.answers,
        tokenizer=case.target.wording.tokenizer,
        settings=["mlp_coef+attn_out"],
        progress=False,
    )
    rows = result.to_frame(per_prompt=True)
    best = rows[rows.window == result.best()["window"].iloc[0]]
    np.testing.assert_allclose(found.values, best.krs, atol=1e-9)
