"""A small study on tiny random models that are saved to the disk, and what it came to."""

import json
from pathlib import Path

import yaml

from krs.study import load
from krs.study.carry import Carrier
from krs.study.grid import cells
from krs.study.store import Store
from tests.tiny import build, perturbed
from tests.unlearn.tiny_tokenizer import tiny_tokenizer

CONCEPTS = {
    "cat": ["who is the cat", "what ran on the moon"],
    "dog": ["who is the dog", "what sat in the sun"],
}


def home(folder: Path) -> Path:
    """A folder with a vanilla model `v`, a published unlearned one `p`, and a file for each of two concepts."""
    vanilla = build("llama")
    for name, model in (("v", vanilla), ("p", perturbed(vanilla))):
        model.save_pretrained(folder / name)
        tiny_tokenizer().save_pretrained(folder / name)
    for name, questions in CONCEPTS.items():
        told = {"name": name, "questions": questions, "unrelated_questions": ["what is red", "who wrote the book"]}
        (folder / f"{name}.json").write_text(json.dumps(told))
    return folder


def asked(**changes) -> dict:
    """A spec of three cells on one concept: two methods, and the published pair."""
    fast = {"learning_rate": 1e-2, "steps": 2, "batch_size": 2}
    return {
        "models": ["v"],
        "concepts": ["cat.json"],
        "methods": [{"name": "ga", "settings": fast}, {"name": "grad_diff", "settings": fast}],
        "pairs": [{"vanilla": "v", "unlearned": "p", "label": "public"}],
        "chat": True,
        "steps": {
            "prepare": {"n_tokens": 4},
            "unlearn": {"save_steps": 1},
            "sweep": {"windows": 3, "n_tokens": 4},
            "answers": {"n_tokens": 4},
            "drift": {},
        },
    } | changes


def written(folder: Path, spec: dict, name: str = "study.yaml") -> Path:
    """The spec as a YAML file beside the models."""
    (folder / name).write_text(yaml.safe_dump(spec, sort_keys=False))
    return folder / name


def manifests(out: Path) -> dict:
    """By cell and step: the manifest, every byte of the artefacts checked; `None` where it is not there."""
    study = load(out)
    carrier = Carrier(study.spec, Store(study.folder))
    return {
        (cell.name, made.name): found
        for cell in cells(study.spec)
        for made, _, found in carrier.states(cell, thorough=True)
    }


def contents(out: Path) -> dict:
    """By cell and step: the digest of the result."""
    return {at: found and (found.key, found.content) for at, found in manifests(out).items()}
