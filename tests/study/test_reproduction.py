"""The reproduction at small scale: its specs are right, its kept results open and hold no released text."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import krs
from krs import study
from krs.data import load_concepts
from krs.study.grid import n_cells
from krs.study.page import page_of
from tests.data.test_paper_format import RELEASED, with_released

HOME = Path(__file__).parents[2] / "examples" / "reproduction"
CELLS = {
    "bundled": 2 * 4,
    "bundled_more": 2 * 4,
    "fig1": 9 * 5,
    "fig2": 3 * 7 * 3,
    "seeds": 2 * 3 * 3,
    "value_vectors": 9 * 2,
}
RESULTS = sorted((HOME / "results").glob("*.json"))


@pytest.mark.real
@with_released
def test_the_specs_are_right(tmp_path, smollm2):
    for path in HOME.glob("*.*"):
        shutil.copy(path, tmp_path)
    shutil.copy(RELEASED, tmp_path)
    made = [sys.executable, str(tmp_path / "corpus.py"), str(RELEASED)]
    assert "937 paragraphs" in subprocess.run(made, check=True, capture_output=True, text=True).stdout
    assert {name: n_cells(study.read_spec(tmp_path / f"{name}.yaml")) for name in CELLS} == CELLS


@pytest.mark.parametrize("file", RESULTS, ids=lambda file: file.stem)
def test_the_results_open_and_agree_with_their_spec(file):
    found = study.load_exported(file)
    assert len(found.rows) == CELLS[file.stem] == n_cells(found.spec)
    if "sweep" in found.spec.steps:
        swept = found.table("krs")
        settings = (found.spec.steps["sweep"] or {}).get("settings")
        assert len(swept) == swept.cell.nunique() * len(settings or "four") * 30
        assert (swept.krs <= 1).all()
    assert found.table("answers").cell.nunique() == n_cells(found.spec)
    page_of(found)
    shown = subprocess.run(
        [sys.executable, str(HOME / "tables.py"), str(file)], check=True, capture_output=True, text=True
    )
    assert "| grad_diff |" in shown.stdout or "| value vectors alone |" in shown.stdout


@pytest.mark.parametrize("file", RESULTS, ids=lambda file: file.stem)
@with_released
def test_the_results_hold_no_released_text(file):
    kept = file.read_text(encoding="utf-8")
    for concept in load_concepts(RELEASED):
        for text in (*concept.questions, *concept.unrelated_questions, *concept.paragraphs):
            assert text not in kept
    bundled = sorted((Path(krs.data.__file__).parent / "concepts").glob("*.json"))
    texts = bundled if file.stem.startswith("bundled") else [RELEASED]
    joined = study.load_exported(file, texts)
    asked = {q for t in texts for c in load_concepts(t) for q in (*c.questions, *c.unrelated_questions)}
    assert set(joined.table("answers").question) <= asked
