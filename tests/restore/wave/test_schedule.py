from hypothesis import given, settings
from hypothesis import strategies as st

from krs import windows
from krs.restore.plan import Plan
from krs.restore.wave.schedule import schedule

SETTINGS = ["mlp_coef", "attn_out", "mlp_coef+attn_out", "value_vectors"]


def _history(steps, row):
    """What was restored at each layer on the way to a row."""
    found = []
    for step in reversed(steps):
        found.append(step[row].interventions)
        row = step[row].parent
    assert row == 0
    return found[::-1]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sets(st.integers(0, 4), min_size=1), min_size=1, max_size=5, unique_by=frozenset),
    st.sets(st.sampled_from(SETTINGS), min_size=1),
)
def test_every_restoration_ends_in_the_row_with_its_history(listed, names):
    plan = Plan.make(sorted(names), windows.of(listed), n_layers=5)
    found = schedule(plan)
    steps, last = found.steps, found.at[-1]
    for restoration, row in zip(plan, last, strict=True):
        expected = [
            restoration.interventions if layer in restoration.window.layers else frozenset() for layer in range(5)
        ]
        assert _history(steps, row) == expected
    for step in steps:
        assert len(set(step)) == len(step)
        assert step[0].parent == 0
        assert not step[0].interventions


def test_windows_that_begin_alike_share_their_beginning():
    steps = schedule(Plan.make("attn_out", windows.up_to_layer(), n_layers=4)).steps
    assert [len(step) for step in steps] == [2, 3, 4, 5]
    steps = schedule(Plan.make("attn_out", 5, n_layers=30)).steps
    assert [len(step) for step in steps][:4] == [2, 3, 4, 6]


def test_a_part_of_a_plan():
    plan = Plan.make(SETTINGS, 1, n_layers=3)
    found = schedule(plan, [list(plan)[7]])
    steps, last = found.steps, found.at[-1]
    assert [len(step) for step in steps] == [1, 2, 2]
    assert last == (1,)
