"""The notebooks of examples/ run on the bundled model and tell what they say; their pages in docs/ are theirs."""

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
TOLD = {
    "quick_start": """
table = result.krs
assert table["mlp_coef+attn_out"].max() > 0.5 and table["value_vectors"].max() < table["mlp_coef+attn_out"].max()
assert list(spoken) != list(answers), "two steps unlearn nothing"
assert list(restored) != list(spoken), "nothing came back"
""",
    "custom_patching": """
assert probability(asked) > 10 * probability(other)
behind = put_in["residual stream behind them"]
assert abs(behind.iloc[-1] - probability(asked)) < 1e-3, "the last layer's residual stream is all there is"
assert behind.iloc[0] < 0.1 * behind.iloc[-1] and put_in["coefficients of these layers"].max() < 0.1 * behind.iloc[-1]
assert found.table("lead").shape == (3, model.config.num_attention_heads)
""",
    "unlearn_and_dissect": """
assert said.table.bleu["target"] < said.table.ceiling["target"]
assert set(found.readings) == {"nll", "nll_tail", "recall"}
for name in ("nll", "nll_tail"):
    assert found.readings[name].mean > found.readings[name].nulls["same"].mean()
assert found.verdict.why
""",
    "bring_your_own_model": """
assert abs(result.krs["value_vectors"].iloc[-1] - 1) < 1e-3
assert abs(same.krs - plain.krs).to_numpy().max() < 1e-4
assert named.complete
""",
    "write_a_method": """
nats_by_step = pd.DataFrame(seen).pivot(index="step", columns="method")["forget answer"]
last = nats_by_step.diff().iloc[-1]
assert nats_by_step["ga"].iloc[-1] > nats_by_step["bounded"].iloc[-1] > nats_by_step["bounded"].iloc[0]
assert last["bounded"] < last["ga"], "the floor is no floor"
""",
    "write_a_measure": """
assert result.measures == ("logit_mse", "tv", "odds")
assert result.table("tv").to_numpy().min() >= 0 and result.table("tv").to_numpy().max() <= 1
back = {name: result.recovery(name)[setting].max() for name in result.measures}
assert back["logit_mse"] > back["tv"] + 0.2 and back["logit_mse"] > back["odds"] + 0.2, "the score is not far ahead"
""",
}
"""What has to hold in each when it has run."""

OTHERS = ("IProgress", "is_gradient_checkpointing")
"""Warnings of others: tqdm's where Jupyter's widgets are not installed, transformers' of what peft 0.21 asks it for."""


def _marked(path):
    long = () if path.stem == "quick_start" else (pytest.mark.long,)
    return pytest.param(path, id=path.name, marks=long)


@pytest.mark.real
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("notebook", [_marked(path) for path in NOTEBOOKS])
def test_a_notebook_runs_and_holds_what_it_says(notebook, smollm2):
    import nbformat
    from nbclient import NotebookClient

    book = nbformat.read(notebook, as_version=4)
    book.cells.append(nbformat.v4.new_code_cell(TOLD[notebook.stem]))
    at_root = {"metadata": {"path": str(ROOT)}}
    NotebookClient(book, timeout=600, kernel_name="python3", resources=at_root).execute()
    put_out = [out for cell in book.cells for out in cell.get("outputs", [])]
    assert put_out
    warned = [out.text for out in put_out if out.get("name") == "stderr"]
    told = [text for text in warned if "Warning" in text or "note:" in text]
    assert not [text for text in told if not any(known in text for known in OTHERS)]
    pictures = [cell for cell in book.cells if "image/png" in str(cell.get("outputs", ""))]
    assert all(len(cell.metadata.get("alt", "").split()) > 4 for cell in pictures), "say what the picture shows"


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.name)
def test_the_page_of_a_notebook_is_of_the_notebook_as_it_is(notebook):
    nbformat = pytest.importorskip("nbformat")
    book = nbformat.read(notebook, as_version=4)
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in book.cells), "clear the outputs"
    source = runpy.run_path(str(ROOT / "docs/notebooks.py"))["source"]
    page = (ROOT / "docs/examples" / f"{notebook.stem}.md").read_text(encoding="utf-8")
    at = 0
    for cell in book.cells:
        assert source(cell) in page[at:], f"`make notebooks` has not been run since this was changed: {cell.source}"
        at = page.index(source(cell), at) + len(source(cell))
    assert page.count("```python\n") == sum(cell.cell_type == "code" for cell in book.cells)
    for told, picture in re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", page):
        assert (ROOT / "docs/examples" / picture).is_file()
        assert len(told.split()) > 4
    for place in re.findall(r"\]\(([^)#:]+\.md)", page):
        assert (ROOT / "docs/examples" / place).is_file(), place
    assert f"examples/{notebook.stem}.md" in (ROOT / "mkdocs.yml").read_text(encoding="utf-8")


def test_every_notebook_says_what_has_to_hold_and_every_page_has_one():
    names = {path.stem for path in NOTEBOOKS}
    assert names == set(TOLD) == {path.stem for path in (ROOT / "docs/examples").glob("*.md")}
