"""How far a pass may be from a prompt by itself: what rounding may do anyway, or what it is seen to do."""

from __future__ import annotations

import pytest

from krs.errors import KrsError
from krs.restore.wave import reference
from krs.restore.wave.runner import LayerwiseRunner
from tests.tiny import pair

PROMPTS = [[1, 2, 3, 4, 5], [1, 2, 6], [7, 8, 9, 10, 11, 12, 13]]


@pytest.fixture
def runs_in_company(monkeypatch):
    seen = []
    call = LayerwiseRunner.call

    def noting(self, layer, states, rows=1):
        if self.eager:
            seen.append(layer)
        return call(self, layer, states, rows)

    monkeypatch.setattr(LayerwiseRunner, "call", noting)
    return seen


def sweep():
    import krs

    return krs.sweep(*pair("llama"), PROMPTS, n_tokens=3, windows=3, progress=False, engine="wavefront")


def test_a_pass_within_what_rounding_may_do_anyway_asks_for_no_more(runs_in_company):
    sweep()
    assert runs_in_company == []


def test_beyond_it_the_prompt_in_company_says_what_rounding_does(runs_in_company, monkeypatch):
    plainly = sweep().krs
    monkeypatch.setitem(reference._FLOOR, "single", (0.0, 0.0))
    monkeypatch.setattr(reference, "_TIMES", 1e4)
    assert (sweep().krs == plainly).all(axis=None)
    assert sorted(set(runs_in_company)) == [0, 1, 2, 3]
    monkeypatch.setattr(reference, "_TIMES", 0.0)
    with pytest.raises(KrsError, match="not exact here: states after layer"):
        sweep()
