import json
from dataclasses import asdict, dataclass

import numpy as np
import pytest

from krs import KrsError, Plan, windows
from krs.restore.plan import PAPER_SETTINGS
from krs.restore.windows import Shape, Window, shape


def _layers(given, n):
    return [list(w.layers) for w in given.over(n)]


def test_centred_windows_are_clipped_at_both_ends():
    assert _layers(windows.centred(5), 6) == [
        [0, 1, 2],
        [0, 1, 2, 3],
        [0, 1, 2, 3, 4],
        [1, 2, 3, 4, 5],
        [2, 3, 4, 5],
        [3, 4, 5],
    ]
    assert [w.name for w in windows.centred(5).over(6)] == list(range(6))
    assert len(windows.centred(5).over(32)) == 32


def test_the_other_shapes():
    assert _layers(windows.sliding(2), 4) == [[0, 1], [1, 2], [2, 3]]
    assert [w.name for w in windows.sliding(4).over(5)] == [1, 2]
    assert _layers(windows.from_layer_on(), 3) == [[0, 1, 2], [1, 2], [2]]
    assert _layers(windows.up_to_layer(), 3) == [[0], [0, 1], [0, 1, 2]]
    assert _layers(windows.each(), 3) == [[0], [1], [2]]
    assert _layers(windows.of([[2, 0], [1]]), 3) == [[0, 2], [1]]


def test_listed_windows_are_named_by_their_middle_where_that_tells_them_apart():
    assert [w.name for w in windows.of([[27, 28, 29], [3]]).over(30)] == [28, 3]
    assert [w.name for w in windows.of([[27, 28, 29], [28], [1, 5]]).over(30)] == ["27-29", "28", "1,5"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: windows.centred(0), "a window of 0 layers restores nothing"),
        (lambda: windows.sliding(-1), "a window of -1 layers"),
        (lambda: windows.centred(4), r"odd size, not 4: use 5, or windows.sliding\(4\)"),
        (lambda: windows.sliding(5).over(4), "does not fit into 4 layers"),
        (lambda: windows.of([]), "list of lists of layers"),
        (lambda: windows.of([[1], []]), "none of them empty"),
        (lambda: windows.of([[1, 2], [2, 1]]), "the same window twice"),
        (
            lambda: windows.of([[30]]).over(30),
            "layer 30 in the window .* out of range: .* 30 layers, 0 to 29",
        ),
        (lambda: shape("5"), "takes a size or a shape"),
    ],
)
def test_bad_windows(make, message, as_a_user):
    with pytest.raises(KrsError, match=message):
        make()


@dataclass(frozen=True)
class _Strided(Shape):
    kind: str = "strided"
    step: int = 3

    def over(self, n_layers):
        return tuple(Window(np.int64(c), np.arange(c, n_layers, self.step)[::-1]) for c in range(self.step))


def test_a_shape_of_ones_own_may_count_in_numpys_numbers_and_have_no_empty_window(as_a_user):
    """What is saved has to be read again: plain numbers, ascending, and none without layers."""
    found = Plan.make("mlp_coef", _Strided(), n_layers=4)
    assert [(w.name, w.layers) for w in found.windows] == [(0, (0, 3)), (1, (1,)), (2, (2,))]
    json.dumps([asdict(w) for w in found.windows])
    with pytest.raises(KrsError, match="the window 4 has no layers"):
        Plan.make("mlp_coef", _Strided(step=5), n_layers=4)


@pytest.mark.parametrize("given", [[[True]], [[1.0]], [["1"]]])
def test_layers_are_whole_numbers(given, as_a_user):
    with pytest.raises(KrsError, match="give a whole number"):
        windows.of(given)


def test_a_plan_prints_and_counts_itself_without_a_model():
    plan = Plan.make(n_layers=30)
    assert plan.settings == PAPER_SETTINGS
    assert len(plan) == len(list(plan)) == 120
    assert plan.layers == tuple(range(30))
    assert [p.name for p in plan.points] == ["mlp_coef", "value_vectors", "attn_out"]
    # Every centre c starts at max(c - 2, 0): a sum of 30 - start over the windows, for each setting.
    assert plan.layer_runs == (3600, 4 * sum(30 - max(c - 2, 0) for c in range(30)))
    assert repr(plan) == (
        "Plan: 4 settings (mlp_coef, value_vectors, attn_out, mlp_coef+attn_out) x 30 windows (Window(0: layers 0-2) … "
        "Window(29: layers 27-29)) = 120 restorations; 3600 layer runs as full forwards, 2088 from each window up"
    )


def test_plans_are_values():
    assert Plan.make(["attn_out"], 3, n_layers=4) == Plan.make("attn_out", windows.centred(3), n_layers=4)
    assert Plan.make(n_layers=4, positions=[0, -1]).positions == (0, -1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"settings": []}, "settings= is empty"),
        ({"settings": {"mlp_coef": 1}}, "settings is a dict: pass a list of settings"),
        ({"settings": ["mlp_coef", "mlp_coef"]}, "the same setting twice"),
        ({"positions": "question"}, "give None .all., 'prompt', 'answer'"),
        ({"positions": []}, "restores nothing"),
    ],
)
def test_bad_plans(options, message):
    with pytest.raises(KrsError, match=message):
        Plan.make(n_layers=4, **options)
