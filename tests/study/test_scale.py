"""What the runner itself costs, with a step that does nothing but wait."""

import time
import tracemalloc

import pytest

from krs import study
from krs.study import step as steps
from krs.study.run import status
from krs.writing import write_text
from tests.study.small import home

pytestmark = pytest.mark.long
OWN: list[float] = []


class Pause(study.Part):
    """`seconds` to wait."""

    seconds: float = 0.0


@pytest.fixture
def stub(monkeypatch):
    """A step that is registered by the test alone."""
    steps.steps()  # krs's own register themselves now, and not in the copy alone
    monkeypatch.setattr(steps, "REGISTRY", steps.REGISTRY.copy())

    @study.register("stub")
    class Stub(study.Step):
        options = Pause

        def models(self, cell):
            return {}

        def inputs(self, cell, spec, options):
            return {"cell": cell.name}

        def run(self, work):
            begun = time.monotonic()
            time.sleep(work.options.seconds)
            write_text(work.folder / "stub.txt", work.cell.name)
            OWN.append(time.monotonic() - begun)  # a busy machine wakes it late, and a slow disk is its own as well
            return work.cell.name


def _spec(place, n, seconds=0.0):
    return {
        "models": [str(place / "v")],
        "concepts": [str(place / "cat.json")],
        "methods": ["ga"],
        "seeds": list(range(n)),
        "steps": {"stub": {"seconds": seconds}},
    }


def test_the_runner_costs_less_than_two_percent_of_cells_of_a_second(stub, tmp_path):
    place, n, each = home(tmp_path), 100, 1.0
    spec = study.read_spec(_spec(place, n, each))  # imports what the methods need, once
    OWN.clear()
    begun = time.monotonic()
    study.run(spec, place / "out", progress=False)
    over = (time.monotonic() - begun) / sum(OWN) - 1
    assert len(OWN) == n
    print(f"\n{n} cells of {each} s: {over:.2%} more")  # noqa: T201
    assert over < 0.02


def test_ten_thousand_cells_list_and_resume_in_seconds(stub, tmp_path):
    place = home(tmp_path)
    spec = study.read_spec(_spec(place, 10_000))
    begun = time.monotonic()
    study.run(spec, place / "out", progress=False)
    first = time.monotonic() - begun
    begun = time.monotonic()
    assert study.run(spec, place / "out", progress=False).failed == []
    again = time.monotonic() - begun
    begun = time.monotonic()
    assert sum(1 for _ in status(place / "out")) == 10_001
    listed = time.monotonic() - begun
    tracemalloc.start()
    study.run(spec, place / "out", progress=False)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    print(f"\n10,000 cells: first {first:.1f} s, again {again:.1f} s, listed {listed:.1f} s, peak {peak / 1e6:.1f} MB")  # noqa: T201
    assert max(again, listed) < 20
    assert peak < 20e6
