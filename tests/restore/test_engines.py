"""Engines that are written outside krs."""

import numpy as np
import pytest

import krs
from krs import KrsError
from krs.restore import engines
from krs.restore.engines import register_engine
from krs.restore.job import NotExactError
from krs.restore.plain import PlainEngine
from tests.tiny import pair

PROMPTS = [[5, 9, 11], [7, 3, 22, 8]]


class Backwards:
    """The plain engine's numbers, yielded from the last chunk to the first."""

    name = "backwards"
    exact = True

    def run(self, job):
        yield from reversed(list(PlainEngine().run(job)))

    def steps(self, job):
        return PlainEngine().steps(job)


class Estimate(Backwards):
    name = "rough"
    exact = False


class Never(Backwards):
    name = "never"

    def run(self, job):
        raise NotExactError("it is a bad day")
        yield


@pytest.fixture
def registry(monkeypatch):
    monkeypatch.setattr(engines, "ENGINES", engines.ENGINES.copy())


def _sweep(v, u, **options):
    return krs.sweep(v, u, PROMPTS, windows=3, n_tokens=4, progress=False, **options)


def test_a_registered_engine_is_asked_by_name(registry):
    register_engine(Backwards())
    v, u = pair("llama")
    found = _sweep(v, u, engine="backwards", measures=["kl"])
    twin = _sweep(v, u, engine="plain", measures=["kl"])
    np.testing.assert_array_equal(found.losses.restored, twin.losses.restored)
    assert found.table("kl").equals(twin.table("kl"))
    assert found.provenance["engine"] == "backwards"
    assert found.provenance["parts"][0]["engine"] == "backwards"


def test_parts_of_exact_engines_may_be_joined_and_estimates_never(registry, tmp_path):
    register_engine(Backwards())
    register_engine(Estimate())
    v, u = pair("llama")
    for engine, joined in (("backwards", True), ("rough", False)):
        part = _sweep(v, u, engine=engine, checkpoint=tmp_path / f"{engine}.krs")
        part.losses.restored[5:] = np.nan
        part.part[5:] = -1
        part.save(tmp_path / f"{engine}.krs", overwrite=True)
        if joined:
            again = _sweep(v, u, checkpoint=tmp_path / f"{engine}.krs")
            assert again.provenance["engine"] == "backwards and wavefront"
        else:
            with pytest.raises(KrsError, match="rough is not an exact one"):
                _sweep(v, u, checkpoint=tmp_path / f"{engine}.krs")


def test_an_engine_that_gives_up_says_why(registry):
    register_engine(Never())
    with pytest.raises(KrsError, match="engine='never' is not exact here: it is a bad day"):
        _sweep(*pair("llama"), engine="never")


def test_what_is_no_engine_and_names_that_are_taken(registry, as_a_user):
    with pytest.raises(KrsError, match="object is no engine: it needs a name, exact, run"):
        register_engine(object())
    other = Backwards()
    other.name = "plain"
    with pytest.raises(KrsError, match="the engine 'plain' is registered already, by krs.restore.plain: choose"):
        register_engine(other)
    with pytest.raises(KrsError, match="engine='fast': choose one of 'auto', 'wavefront', 'plain'"):
        _sweep(*pair("llama"), engine="fast")
