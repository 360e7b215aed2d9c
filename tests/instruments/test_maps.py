import numpy as np
import torch

from krs.instruments import Case, instrument
from krs.instruments.heldout import HeldOutRestoration, fit
from krs.instruments.logprobs import answer_tokens
from krs.instruments.probe import Probe
from krs.instruments.states import states_at_scored
from tests.instruments.case import FACTS, logprobs, sequence, tiny_case
from tests.noise import assert_same
from tests.tiny import build, perturbed
from tests.unlearn.tiny_tokenizer import tiny_tokenizer


def test_states_are_those_of_hooks_at_the_positions_that_predict_the_answer():
    case = tiny_case()
    found = states_at_scored(case.unlearned, case.target.batch, (1, 3))
    for fact, mine in zip(FACTS, found, strict=True):
        ids, start = sequence(case, fact)
        kept = []
        handle = case.unlearned.model.layers[1].register_forward_hook(lambda _, __, out, kept=kept: kept.append(out))
        logprobs(case.unlearned, ids, start)
        handle.remove()
        assert_same(mine[0], kept[0][0, start - 1 : -1])


def test_a_map_of_low_rank_is_found_from_few_tokens():
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(30, 12, generator=draw, dtype=torch.float64)
    matrix = torch.randn(12, 2, generator=draw, dtype=torch.float64) @ torch.randn(
        2, 12, generator=draw, dtype=torch.float64
    )
    y = x + x @ matrix + 3
    found = fit(x, y, rank=2, ridge=1e-12)
    np.testing.assert_allclose(found(x), y, atol=1e-6)
    new = torch.randn(5, 12, generator=draw, dtype=torch.float64)
    np.testing.assert_allclose(found(new), new + new @ matrix + 3, atol=1e-6)
    assert fit(x, y, rank=0, ridge=1.0).down.shape == (12, 0)
    sham = found.like(0)
    assert_same(sham.shift.norm(), found.shift.norm())
    assert float((sham.shift - found.shift).norm()) > 1


def test_a_map_that_restores_exactly_gives_the_vanilla_likelihood_back():
    """Unlearned: the vanilla model with a constant added behind its last layer, which a mean shift takes away."""
    case = tiny_case("llama-bias")
    with torch.no_grad():
        for ours, theirs in zip(case.unlearned.parameters(), case.vanilla.parameters(), strict=True):
            ours.copy_(theirs)
        case.unlearned.model.layers[-1].mlp.down_proj.bias += 0.7 * torch.randn(16, dtype=torch.float64)
    last = (3,)
    tool = HeldOutRestoration(rank=0)
    maps = tool.fitted(case, case.target.only([0, 1]), last)
    others = case.target.only([2, 3])
    after = tool.after(case.unlearned, others, last, maps)[0]
    assert_same(after, answer_tokens(case.vanilla, others.batch).nll())
    assert np.abs(after - answer_tokens(case.unlearned, others.batch).nll()).max() > 1e-3


def test_each_fact_is_judged_by_maps_of_others_and_shams_stand_beside():
    found = instrument("held_out_restoration").measure(tiny_case())
    assert set(found.nulls) == {"random map", "map of unrelated facts"}
    assert list(found.curves["recovered"].index) == [2]
    assert np.isfinite(found.values).all()


def _answers(tell: bool, n: int = 40):
    """Features of right and wrong answers, in which truth is one direction or none."""
    draw = torch.Generator().manual_seed(0)
    of = np.repeat(np.arange(n), 3)
    right = np.tile([True, False, False], n)
    x = torch.randn(2, 3 * n, 8, generator=draw)
    if tell:
        x[..., 0] += 6 * torch.as_tensor(right)
    return x, of, right


def test_a_probe_finds_truth_that_is_one_direction_and_none_where_there_is_none():
    draw = np.random.default_rng(0)
    assert Probe()._judged(*_answers(True), draw).mean() > 0.97
    assert abs(Probe()._judged(*_answers(False), draw).mean() - 0.5) < 0.12


def test_a_probe_on_a_model_has_shuffled_labels_beside_it():
    found = instrument("probe").read(tiny_case())
    assert set(found.nulls) == {"shuffled labels", "same", "never_knew"}
    assert ((found.values >= 0) & (found.values <= 1)).all()


def test_a_transplant_of_the_whole_difference_brings_all_of_it():
    case = tiny_case()
    found = instrument("transplant").measure(case)
    assert found.values.shape == (len(FACTS),)
    assert "weights" in found.curves["recovery"].columns


def test_where_all_states_are_alike_a_probe_guesses_and_a_map_is_a_shift():
    """A model without weights: one cannot tell its answers, and nothing is singular."""
    case = tiny_case()
    with torch.no_grad():
        for parameter in case.unlearned.parameters():
            parameter.zero_()
    found = instrument("probe").measure(case)
    assert found.values.tolist() == found.nulls["shuffled labels"].tolist() == [0.5] * 4
    alike = torch.ones(6, 12, dtype=torch.float64)
    target = torch.arange(72.0, dtype=torch.float64).reshape(6, 12)
    assert_same(fit(alike, target, rank=4, ridge=0.1)(alike), target.mean(0).expand(6, 12))


def test_models_without_a_window_before_their_last_layer_have_no_transplant():
    for n_layers, lack in ((3, "needs a window of five layers before the last layer"), (4, None)):
        vanilla = build("llama", num_hidden_layers=n_layers)
        case = Case.make(vanilla, perturbed(vanilla), tiny_tokenizer(), FACTS, chat=False)
        assert instrument("transplant").lacks(case) == lack
    assert len(instrument("transplant").measure(case).values) == 4
