"""Swapped models, and a vanilla model that is not the one that was unlearned."""

import warnings

import pytest
import torch

import krs
from krs import KrsWarning, unlearn
from krs.models.lineage import check_roles
from tests.tiny import build
from tests.unlearn.tiny_tokenizer import tiny_tokenizer


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Directories of a vanilla model, the one unlearned from it, and another vanilla model."""
    folder = tmp_path_factory.mktemp("lineage")
    for name, seed in (("vanilla", 0), ("other", 1)):
        build("llama", seed=seed).save_pretrained(folder / name)
        tiny_tokenizer().save_pretrained(folder / name)
    texts = ["the cat sat on the moon", "the dog ran in the sun"]
    options = {"steps": 1, "learning_rate": 1e-2, "progress": False, "gradient_norms": False}
    unlearn.run("ga", str(folder / "vanilla"), forget=texts, output_dir=folder / "unlearned", **options)
    unlearn.run("ga", str(folder / "unlearned"), forget=texts, output_dir=folder / "twice", **options)
    return folder


def _models(saved, *names):
    return [krs.load(saved / name)[0] for name in names]


@pytest.mark.parametrize("pair", [("vanilla", "unlearned"), ("unlearned", "twice"), ("vanilla", "other")])
def test_a_pair_that_belongs_together_or_of_which_nothing_is_known(saved, pair):
    assert check_roles(*_models(saved, *pair)) == []


def test_swapped_models_are_named(saved):
    vanilla, unlearned = (str(saved / name) for name in ("vanilla", "unlearned"))
    with pytest.warns(KrsWarning, match="the models may be swapped: the one given as vanilla .*was unlearned") as seen:
        notes = check_roles(*_models(saved, "unlearned", "vanilla"))
    assert vanilla in notes[0]
    assert unlearned in notes[0]
    assert str(seen[0].message) == notes[0]
    with pytest.warns(KrsWarning, match="may be swapped"):
        check_roles(*_models(saved, "twice", "unlearned"))


def test_another_vanilla_model_than_the_one_that_was_unlearned(saved):
    with pytest.warns(KrsWarning, match="was made from another model than the vanilla one given"):
        (note,) = check_roles(*_models(saved, "other", "unlearned"))
    assert all(str(saved / name) in note for name in ("other", "unlearned", "vanilla"))


def test_what_cannot_be_compared_is_not_warned_of(saved):
    v, u = _models(saved, "vanilla", "unlearned")
    assert check_roles(v.to(torch.bfloat16), u.to(torch.bfloat16)) == []
    copied = krs.load(saved / "unlearned")[0]
    assert check_roles(krs.load(saved / "unlearned")[0], copied) == []  # two of one name: one may be a copy in memory


def test_every_comparison_says_it(saved):
    u, v = (str(saved / name) for name in ("unlearned", "vanilla"))
    with pytest.warns(KrsWarning, match="may be swapped"):
        result = krs.sweep(u, v, [[5, 6, 7]], windows=krs.windows.of([[1]]), n_tokens=2, progress=False)
    assert "may be swapped" in " ".join(result.notes)
    assert "note: the models may be swapped" in repr(result)
    with pytest.warns(KrsWarning, match="may be swapped"):
        found = krs.metrics.answers(u, v, [[5, 6, 7]], n_tokens=2, progress=False)
    assert "may be swapped" in repr(found)
    with pytest.warns(KrsWarning, match="may be swapped"):
        krs.metrics.drift(u, v)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        krs.metrics.drift(v, u)
