"""The specs of the paper's own experiments: checked as they are, and carried out in small on the real layouts."""

import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from typer.testing import CliRunner

import krs
from krs import KrsError, study
from krs.cli import app
from krs.study.grid import cells, n_cells
from krs.study.marked import read_marked
from tests.models.test_olmo import CONFIG, _save, _weights
from tests.tiny import build, perturbed
from tests.unlearn.memit_case import CORPUS, FAST
from tests.unlearn.tiny_tokenizer import tiny_tokenizer

SPECS = Path(__file__).parents[2] / "examples" / "paper"
NAMES = ("llama2", "olmo")
THINGS = ["book", "cat", "dog", "sun", "moon", "red", "blue", "green", "one", "two"]
SILENT = [0, 1, 2, *range(30, 61)]
"""Ids without a word, which a random model would end its answers with, or say and be silent."""

SEVEN = ["ga", "grad_diff", "dpo", "npo", "npo_kl", "memit_empty", "memit_entropy"]


def _concepts(spec):
    """A stand-in for the released file: its names and ids, texts of our own, value vectors that a tiny model has."""
    ids = [int(re.search(r"(\d+)\.jsonl", topic["paragraphs"])[1]) for topic in spec["concepts"]]
    return [
        {
            "id": number,
            "Concept": topic["concept"] if not topic["concept"].isdigit() else f"{thing} {number}",
            "Layer": 2,
            "Dim": 7,
            "QA": [f" who wrote the {other} of {topic['concept']}\n" for other in THINGS],
            "text_completion": [
                {"First_half": f"the {other} sat on the", "Second_half": "red moon"} for other in THINGS
            ],
            "unrelated_QA": ["what is red\n", "the cat sat on\n"],
        }
        for number, topic, thing in zip(ids, spec["concepts"], THINGS, strict=True)
    ]


def _beside(folder, name):
    """The spec, and what its head says has to lie beside it; corpora are made by `krs corpus` of a small corpus."""
    shutil.copy(SPECS / f"{name}.yaml", folder)
    spec, _ = read_marked(folder / f"{name}.yaml")
    told = _concepts(spec)
    (folder / spec["concepts"][0]["name"]).write_text(json.dumps(told))
    (folder / "corpus").mkdir()
    (folder / "corpus" / "retain.jsonl").write_text("".join(json.dumps(text) + "\n" for text in CORPUS * 3))
    pages = [{"text": "\n\n".join(f"{c['Concept']} {i} {text}" for text in CORPUS)} for c in told for i in range(3)]
    (folder / "dump.jsonl").write_text("".join(json.dumps(page) + "\n" for page in pages))
    for concept in told:
        run = ["corpus", str(folder / "dump.jsonl"), "--concept", concept["Concept"], "--words", "18", "-q"]
        done = CliRunner().invoke(app, [*run, "-o", str(folder / "corpus" / f"{concept['id']}.jsonl")])
        assert done.exit_code == 0, done.exception
    return spec


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No network, and a hub cache that holds nothing."""
    import socket

    def refuse(*_, **__):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))


@pytest.mark.parametrize("name", NAMES)
def test_a_spec_is_right_whole_and_downloads_nothing(name, tmp_path, offline):
    told = _beside(tmp_path, name)
    file = tmp_path / f"{name}.yaml"
    spec = study.read_spec(file)
    assert n_cells(spec) == 20 + 10 * 7 * 3
    by_name = {cell.name: cell for cell in cells(spec)}
    assert len(by_name) == n_cells(spec)
    published = [cell for cell in by_name.values() if cell.unlearned is not None]
    ids = {topic["label"]: re.search(r"(\d+)\.jsonl", topic["paragraphs"])[1] for topic in told["concepts"]}
    for cell in published:
        method = cell.method.removesuffix(", published")
        base = {"llama2": "llama2-7b", "olmo": "olmo-7b"}[name]
        assert cell.unlearned == f"YihuaiHong/{base}_{method}_unlearn_on_id_{ids[cell.concept]}_concept"
    assert {cell.method for cell in by_name.values()} - {cell.method for cell in published} == set(SEVEN)
    trained = next(cell for cell in by_name.values() if cell.method == "grad_diff")
    assert trained.recipe.retain == str(tmp_path / "corpus" / "retain.jsonl")
    assert trained.topic.paragraphs == str(tmp_path / "corpus" / f"{ids[trained.concept]}.jsonl")
    shown = CliRunner().invoke(app, ["study", str(file), "-o", str(tmp_path / "out"), "--dry-run"])
    assert shown.exit_code == 0, shown.exception
    assert "230 cells: 230 to do" in shown.output
    assert "not fetched yet: YihuaiHong/" in shown.output
    assert not (tmp_path / "out").exists()
    (tmp_path / "corpus" / f"{ids[trained.concept]}.jsonl").unlink()
    with pytest.raises(KrsError, match=rf"concepts\[0\].name: no such file: 'corpus/{ids[trained.concept]}.jsonl'"):
        study.read_spec(file)


def _models(folder, name):
    """A vanilla model and its moved copies, in the layout in which the paper's are published."""
    moved = {"dpo": 1, "grad_diff": 2}
    if name == "llama2":
        v = build("llama", max_position_embeddings=128, tie_word_embeddings=False)
        with torch.no_grad():
            v.lm_head.weight[SILENT] = 0
        for at, model in {"v": v, **{m: perturbed(v, seed) for m, seed in moved.items()}}.items():
            model.save_pretrained(folder / at)
            tiny_tokenizer().save_pretrained(folder / at)
        return
    config = CONFIG | {"n_layers": 4, "max_sequence_length": 128}
    weights = _weights(config)
    weights["model.transformer.ff_out.weight"][SILENT] = 0
    _save(folder / "v", config, weights)
    for method, seed in moved.items():
        drawn = torch.Generator().manual_seed(seed)
        noise = {k: 0.05 * torch.randn(w.shape, generator=drawn) for k, w in weights.items()}
        _save(folder / method, config, {k: w + noise[k] for k, w in weights.items()})


def _shrunk(spec, n_concepts):
    """The same grid on models of four layers: fewer concepts, steps and tokens, and nothing else."""
    spec = json.loads(json.dumps(spec))
    spec["models"][0]["name"] = "v"
    spec["concepts"] = spec["concepts"][:n_concepts]
    labels = [topic["label"] for topic in spec["concepts"]]
    for pair in spec["pairs"]:
        pair["vanilla"] = "v"
        pair["unlearned"] = dict.fromkeys(labels, pair["label"].removesuffix(", published"))
    for method in spec["methods"]:
        if "corpus" in method:
            method["settings"] = {
                k: list(v) if k == "layers" else v for k, v in FAST.items() if k != "covariance_weight"
            }
            method["strengths"] = {k: {"covariance_weight": w * 1e-8} for k, w in _weighed(method).items()}
        else:
            method["settings"] |= {"steps": 2, "batch_size": 2, "gradient_accumulation": 2, "max_length": 24}
            method["strengths"] = {
                k: {"learning_rate": 100 * v["learning_rate"]} for k, v in method["strengths"].items()
            }
    for step in ("prepare", "sweep", "answers", "completions"):
        spec["steps"][step]["n_tokens"] = 4
    spec["steps"]["sweep"]["questions"] = 3
    return spec


def _weighed(method):
    return {name: changes["covariance_weight"] for name, changes in method["strengths"].items()}


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:.*answers are empty:krs.KrsWarning")
@pytest.mark.parametrize("name", NAMES)
def test_the_grid_runs_through_to_its_figures_in_small(name, tmp_path, offline):
    spec = _shrunk(_beside(tmp_path, name), n_concepts=2)
    _models(tmp_path, name)
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(spec, sort_keys=False, allow_unicode=True))
    found = study.run(tmp_path / "small.yaml", tmp_path / "out", progress=False)
    assert [(outcome.cell, outcome.error) for outcome in found.failed] == []
    results = tmp_path / "out" / "results"
    label = spec["models"][0]["label"]
    for figure in ("fig1", "fig2"):
        assert (results / f"{figure}-{label}.png").stat().st_size > 5000
    expected = set(SEVEN) | {"dpo, published", "grad_diff, published"}
    for table in ("krs", "answers", "drift", "completions", "vocabulary"):
        rows = pd.read_csv(results / f"{table}.csv")
        assert set(rows.method) == expected
        assert rows.cell.nunique() == 2 * (7 * 3 + 2)
    scores = pd.read_csv(results / "krs.csv")
    assert scores.setting.nunique() == 4
    assert scores[scores.method == "dpo, published"].krs.notna().all()
    moved = pd.read_csv(results / "drift.csv").query("component == 'value_vectors'").groupby("cell").identical.min()
    assert (moved < 1).all()  # every cell has changed its model
    again = study.run(tmp_path / "small.yaml", tmp_path / "out", progress=False)
    assert again.written == []
    report = krs.report(tmp_path / "out", tmp_path / "report.html")
    assert report.stat().st_size < 5e6
