import numpy as np
import pytest
import torch

from krs import ATTN_OUT, EXPERTS, MLP_COEF, ROUTER, VALUE_VECTORS, WEIGHTS, KrsError
from krs.hooks import ActivationPoint, Setting, anatomy, register_point, setting
from tests.tiny import build


def test_settings_are_sums_in_the_order_written():
    both = MLP_COEF + ATTN_OUT
    assert both.name == "mlp_coef+attn_out"
    assert both.label == "MLP coefficients + Attention outputs"
    assert [p.name for p in (ATTN_OUT + MLP_COEF).points] == ["attn_out", "mlp_coef"]


def test_order_and_repetition_do_not_matter_to_equality():
    assert MLP_COEF + ATTN_OUT == ATTN_OUT + MLP_COEF + ATTN_OUT
    assert hash(MLP_COEF + ATTN_OUT) == hash(ATTN_OUT + MLP_COEF)
    assert MLP_COEF + ATTN_OUT != MLP_COEF + VALUE_VECTORS


def test_settings_from_strings(as_a_user):
    assert setting("mlp_coef + attn_out") == MLP_COEF + ATTN_OUT
    assert setting(MLP_COEF) == Setting((MLP_COEF,))
    with pytest.raises(KrsError, match=r"unknown point 'mlp' .*known are .*attn_out.*register_point"):
        setting("mlp+attn_out")
    with pytest.raises(KrsError, match="not int"):
        setting(3)


def test_a_side_or_a_place_that_there_is_not(as_a_user):
    with pytest.raises(KrsError, match="the point 'gate' has side='out': choose 'input' or 'output'"):
        ActivationPoint("gate", role=".mlp.gate_proj", label="Gates", side="out")
    with pytest.raises(KrsError, match="the point 'gate' has heads_of='value': choose 'query' or 'key'"):
        ActivationPoint("gate", role=".mlp.gate_proj", label="Gates", side="output", heads_of="value")
    with pytest.raises(KrsError, match="the point 'table' has place='head': choose one of 'layer', 'embedding'"):
        ActivationPoint("table", role=".mlp.gate_proj", label="Gates", side="output", place="head")
    mistyped = ActivationPoint("gate", role=".mlp.gate", label="Gates", side="output")
    with pytest.raises(KrsError, match="The point's role '.mlp.gate' is a path inside a layer: correct it"):
        anatomy(build("llama")).modules(mistyped, 0)


def test_placements_print_as_they_are_written():
    assert repr(MLP_COEF.at(27, 28)) == "mlp_coef.at(27, 28)"
    assert repr((MLP_COEF + ATTN_OUT).at(3, positions=-1, units=[5])) == (
        "(mlp_coef+attn_out).at(3, positions=[-1], units=[5])"
    )
    assert repr(VALUE_VECTORS.at(1).map(torch.neg)) == "value_vectors.at(1).map(neg)"


def test_numpys_whole_numbers_are_layers_too(as_a_user):
    assert MLP_COEF.at(*np.arange(2), positions=np.int64(3)) == MLP_COEF.at(0, 1, positions=[3])
    with pytest.raises(KrsError, match=r"whole numbers, not \(1.5,\)"):
        MLP_COEF.at(1.5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MLP_COEF.at(), "names no layer"),
        (lambda: MLP_COEF.at(-1), "from 0 up, not -1"),
        (lambda: VALUE_VECTORS.at(1, positions=-1), "a weight acts at every position"),
        (
            lambda: (MLP_COEF + VALUE_VECTORS).at(1, positions=[0]),
            "place the weights and the activations separately",
        ),
        (lambda: MLP_COEF.at(1).set(None), "needs a recording, a model or a tensor"),
        (lambda: MLP_COEF.at(1).set(0.0, where=torch.ones(2, 2)), "takes a bool tensor"),
    ],
)
def test_bad_placements(make, message):
    with pytest.raises(KrsError, match=message):
        make()


@pytest.mark.parametrize("point", [WEIGHTS, EXPERTS, ROUTER])
def test_of_all_parameters_of_a_module_no_units_can_be_chosen(point):
    """They were taken all the same, whatever units were said."""
    for make in (lambda: point.units(3), lambda: point.at(1, units=[3]), lambda: setting(f"{point.name}.units(3)")):
        with pytest.raises(KrsError, match=f"{point.name} is every parameter inside a module, and no units of it can"):
            make()


def test_a_point_name_is_taken_once():
    with pytest.raises(
        KrsError, match="the point 'mlp_coef' is registered already, by krs.hooks.library: choose another"
    ):
        register_point(ActivationPoint("mlp_coef", role="attn_out_proj", label="x", side="input"))
    assert register_point(MLP_COEF) is MLP_COEF
