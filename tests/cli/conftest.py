"""Results of a tiny pair, as commands find them."""

import numpy as np
import pytest

import krs
from krs.instruments.dissection import Dissection
from krs.instruments.facts import as_facts
from krs.instruments.reading import Reading
from krs.instruments.verdict import Verdict
from tests.cli.told import QUESTIONS
from tests.tiny import pair
from tests.unlearn.tiny_tokenizer import tiny_tokenizer


@pytest.fixture(scope="package")
def place(tmp_path_factory):
    """One of each kind of result, of a tiny pair, in a folder; `results` has the first two sweeps."""
    folder = tmp_path_factory.mktemp("results")
    v, u = pair("llama")
    for name, model in (("v", v), ("u", u)):
        model.save_pretrained(folder / name)
        tiny_tokenizer().save_pretrained(folder / name)
    ask = {"tokenizer": tiny_tokenizer(), "n_tokens": 3, "progress": False}
    names = str(folder / "v"), str(folder / "u")
    first = krs.sweep(*names, QUESTIONS, settings=["mlp_coef", "attn_out"], windows=1, **ask)
    second = krs.sweep(*names, QUESTIONS[:1], settings=["attn_out"], windows=1, **ask)
    first.save(folder / "a.krs")
    second.save(folder / "b_50%.krs")
    third = krs.sweep(*names, QUESTIONS[:1], settings="attn_out", windows=krs.windows.of([[1]]), measures="kl", **ask)
    third.save(folder / "kl.krs")
    krs.mean([first, first], ["one", "two"]).save(folder / "mean.krs")
    krs.sweep(*names, QUESTIONS[:1], settings="resid", windows=1, positions="each", **ask).save(folder / "map.krs")
    krs.metrics.answers(v, u, QUESTIONS[:1], QUESTIONS[1:], **ask).save(folder / "answers.json")
    krs.account(v, u, QUESTIONS, points=8, **ask).save(folder / "account.krs")
    krs.metrics.vocabulary(v, u, where=[(1, 2)], tokenizer=tiny_tokenizer()).save(folder / "vocabulary.json")
    krs.metrics.drift(v, u).frame.to_csv(folder / "drift.csv", index=False)
    reading = Reading("nll", np.array([1.0, 2.0, 3.0]), "nats", "low")
    facts = as_facts([{"question": q, "answer": "she"} for q in ("who", "what", "where")])
    report = Dissection(Verdict("partly", "half of it reads so"), {"nll": reading}, {"uds": "no time"}, facts)
    report.save(folder / "report.json")
    return folder
