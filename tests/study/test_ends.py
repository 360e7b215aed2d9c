"""Norms and the unembedding are restored from a spec and from the shell, by their names, as the call restores them."""

import copy

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import krs
from krs import study
from krs.cli import app
from tests.noise import assert_same
from tests.study.small import asked, home, written
from tests.tiny import build
from tests.unlearn.tiny_tokenizer import tiny_tokenizer

SETTINGS = ["norms", "unembedding", "norms+unembedding"]
QUESTIONS = ["who is the cat", "what ran on the moon"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A pair that differs in the norms of its layers and in its head, in float64: these two put back are all of it."""
    folder = home(tmp_path_factory.mktemp("ends"))
    v = build("llama", tie_word_embeddings=False).double()
    u = copy.deepcopy(v)
    drawn = torch.Generator().manual_seed(0)
    moved = [p for n, p in u.named_parameters() if "lm_head" in n or ("layers" in n and "norm" in n)]
    with torch.no_grad():
        for p in moved:
            p.add_(0.1 * torch.randn(p.shape, generator=drawn, dtype=p.dtype))
    assert len(moved) == 1 + 2 * 4
    for name, model in (("v", v), ("p", u)):
        model.save_pretrained(folder / name)
        tiny_tokenizer().save_pretrained(folder / name)
    return folder


def test_a_specs_sweep_restores_them_by_name(place):
    options = {"settings": SETTINGS, "windows": 9, "n_tokens": 4}
    steps = {"prepare": {"n_tokens": 4}, "sweep": options}
    file = written(place, asked(models=[], methods=[], chat=False, steps=steps))
    found = study.run(file, place / "out", progress=False)
    assert found.failed == []
    assert (place / "out" / "results" / "fig1-v.png").stat().st_size > 5000
    table = found.table("krs").set_index(["setting", "window"]).krs
    wanted = krs.sweep(
        str(place / "v"), str(place / "p"), QUESTIONS, settings=SETTINGS, windows=9, n_tokens=4, progress=False
    ).to_frame()
    assert_same(table.to_numpy(float), wanted.krs.to_numpy(float))
    assert table["unembedding"].index.tolist() == ["unembedding"]
    np.testing.assert_allclose(table["norms+unembedding"], 1, rtol=0, atol=1e-9)  # every window has all four layers
    assert (table["norms"] < 1 - 1e-6).all()
    assert (table["unembedding"] < 1 - 1e-6).all()
    assert CliRunner().invoke(app, ["report", str(place / "out")]).exit_code == 0


def test_the_shells_sweep_restores_them_by_name(place):
    (place / "q.txt").write_text("".join(q + "\n" for q in QUESTIONS))
    run = ["sweep", str(place / "v"), str(place / "p"), "--prompts", str(place / "q.txt"), "-o", str(place / "s"), "-q"]
    run += ["--n-tokens", "4", "--window", "9", *(part for name in SETTINGS for part in ("--settings", name))]
    done = CliRunner().invoke(app, run)
    assert done.exit_code == 0, done.exception
    found = krs.load_result(place / "s" / "sweep.krs").krs
    assert list(found.columns) == SETTINGS
    np.testing.assert_allclose(found["norms+unembedding"].dropna(), 1, rtol=0, atol=1e-9)


def test_the_account_has_them_as_components(place):
    found = krs.account(str(place / "v"), str(place / "p"), QUESTIONS, n_tokens=4, points=12, progress=False)
    share = found.by_component
    assert share[["norms", "unembedding"]].sum() == pytest.approx(1)
    assert (share.drop(["norms", "unembedding"]) == 0).all()
