"""Checkpoints of a run are gone on with by the same run under the same versions."""

import importlib
import json

import pytest

from krs import KrsError
from krs.unlearn import run
from tests.tiny import build
from tests.unlearn.tiny_tokenizer import tiny_tokenizer


def test_a_run_that_other_versions_began_is_not_gone_on_with(tmp_path, monkeypatch):
    options = {"forget": ["the cat sat"], "tokenizer": tiny_tokenizer(), "progress": False, "steps": 2}
    place = tmp_path / "part" / "checkpoints"
    options |= {"output_dir": tmp_path / "part", "save_steps": 1}

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(importlib.import_module("krs.unlearn.run"), "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run("ga", build("llama"), **options)
    monkeypatch.undo()
    mark = place / "krs_recipe.json"
    recipe = json.loads(mark.read_text())
    assert recipe["versions"]["torch"].count(".") == 1
    recipe["versions"]["torch"] = "2.1"
    mark.write_text(json.dumps(recipe))
    with pytest.raises(KrsError, match=r"checkpoints of another run; torch \('2.1' there, '2.\d+' here\) differ"):
        run("ga", build("llama"), **options)
