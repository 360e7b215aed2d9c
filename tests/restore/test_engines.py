"""Engines that are written outside krs."""

from dataclasses import replace

import numpy as np
import pytest

import krs
from krs import KrsError
from krs.restore import engines
from krs.restore.engines import register_engine
from krs.restore.job import Chunk, NotExactError
from krs.restore.plain import PlainEngine
from tests.noise import assert_same
from tests.tiny import exact_pair, pair

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


class Idle(Backwards):
    """One that says it is through, and is not."""

    name = "idle"

    def run(self, job):
        yield from list(PlainEngine().run(job))[:2]


class Cutting(Backwards):
    """A prompt at a time, by hand: `done` is left as it is; `shift` is whether chunks count in the whole job."""

    name = "cutting"

    def __init__(self, shift):
        self.shift = shift

    def run(self, job):
        for n in range(len(job.batch)):
            for step in PlainEngine().run(replace(job, batch=job.batch.rows(n, n + 1))):
                if isinstance(step, Chunk):
                    yield replace(step, prompts=slice(n, n + 1) if self.shift else slice(0, len(job.batch)))


def test_an_engine_that_leaves_something_out_is_no_result(registry):
    register_engine(Idle())
    with pytest.raises(KrsError, match="the engine 'idle' has ended, and 15 of 16 restorations have no numbers"):
        _sweep(*pair("llama"), engine="idle")


def test_what_is_done_is_what_was_done_when_an_engine_began(registry):
    v, u = exact_pair("llama")
    register_engine(Cutting(shift=True))
    found, twin = (_sweep(v, u, engine=engine) for engine in ("cutting", "plain"))
    assert_same(found.losses.restored, twin.losses.restored)


def test_numbers_of_other_prompts_are_refused(registry):
    register_engine(Cutting(shift=False))
    with pytest.raises(KrsError, match=r"gave restored logit_mse of shape \[[0-9]+, [0-9]+\] for slice\(0, 2, None\)"):
        _sweep(*pair("llama"), engine="cutting")


def test_what_is_no_engine_and_names_that_are_taken(registry, as_a_user):
    with pytest.raises(KrsError, match="object is no engine: it needs a name, exact, run"):
        register_engine(object())
    with pytest.raises(KrsError, match=r"Never is a class: register an engine, register_engine\(Never\(\)\)"):
        register_engine(Never)
    other = Backwards()
    other.name = "plain"
    with pytest.raises(KrsError, match="the engine 'plain' is registered already, by krs.restore.plain: choose"):
        register_engine(other)
    with pytest.raises(KrsError, match="engine='fast': choose one of 'auto', 'wavefront', 'plain'"):
        _sweep(*pair("llama"), engine="fast")
