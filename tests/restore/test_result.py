import json

import numpy as np
import pytest

import krs
from krs import KrsError, windows
from tests.tiny import pair

PROMPTS = [[5, 9, 11], [7, 3, 22, 8, 40, 2]]


@pytest.fixture(scope="module")
def result():
    v, u = pair("llama")
    return krs.sweep(v, u, PROMPTS, windows=3, n_tokens=4, progress=False)


def test_the_table_has_a_row_a_window_and_a_column_a_setting(result):
    assert list(result.krs.columns) == ["mlp_coef", "value_vectors", "attn_out", "mlp_coef+attn_out"]
    assert list(result.krs.index) == [0, 1, 2, 3]
    assert result.krs.index.name == "layer"


def test_the_tidy_frame(result):
    frame = result.to_frame()
    assert list(frame.columns) == [
        "setting",
        "window",
        "first_layer",
        "last_layer",
        "loss",
        "baseline",
        "krs",
    ]
    assert len(frame) == 16
    np.testing.assert_allclose(frame.krs, 1 - frame.loss / frame.baseline)
    row = frame.set_index(["setting", "window"]).loc[("attn_out", 0)]
    assert (row.first_layer, row.last_layer) == (0, 1)
    assert row.krs == result.krs.loc[0, "attn_out"]


def test_the_tidy_frame_by_prompt(result):
    frame = result.to_frame(per_prompt=True)
    assert len(frame) == 32
    assert "prompt" in frame
    one = frame[(frame.setting == "attn_out") & (frame.window == 2) & (frame.prompt == 1)].iloc[0]
    losses = result.losses
    assert one.loss == losses.restored[10, 1][losses.mask[1]].mean()
    assert one.krs == pytest.approx(1 - one.loss / losses.baseline[1][losses.mask[1]].mean())


def test_best_is_the_top_of_each_setting(result):
    best = result.best()
    assert list(best.index) == list(result.krs.columns)
    for setting in result.krs:
        assert best.loc[setting, "krs"] == result.krs[setting].max()
        assert best.loc[setting, "window"] == result.krs[setting].idxmax()


def test_a_saved_result_comes_back_whole_and_without_pickle(result, tmp_path):
    file = result.save(tmp_path / "sub" / "r.krs")
    again = krs.load_result(file)
    assert again.plan == result.plan
    assert again.krs.equals(result.krs)
    assert again.provenance == json.loads(json.dumps(result.provenance))
    assert repr(again) == repr(result)
    assert b"pickle" not in file.read_bytes()
    assert [p.name for p in file.parent.iterdir()] == ["r.krs"]


def test_a_file_is_overwritten_only_when_asked(result, tmp_path):
    file = result.save(tmp_path / "r.krs")
    with pytest.raises(KrsError, match=r"exists already: .*overwrite=True"):
        result.save(file)
    result.save(file, overwrite=True)


def test_files_that_are_no_results(tmp_path):
    with pytest.raises(KrsError, match="no file"):
        krs.load_result(tmp_path / "none.krs")
    (tmp_path / "bad.krs").write_bytes(b"\x80\x04nonsense" * 10)
    with pytest.raises(KrsError, match="is not a result that krs saved"):
        krs.load_result(tmp_path / "bad.krs")


def test_the_notebook_view_shows_every_number_of_the_figure(result):
    html = result._repr_html_()
    for value in result.krs.to_numpy().ravel():
        assert f"{value:.3f}" in html
    assert "4 settings x 4 windows, 2 prompts" in html


def test_provenance(result):
    made = result.provenance
    assert made["engine"] == "wavefront"
    assert made["vanilla"]["model_type"] == "llama"
    assert made["n_tokens"] == 4
    assert len(made["tokens_sha256"]) == 64
    assert {"krs", "torch", "transformers", "python"} <= made["versions"].keys()
    assert made["seconds"] >= 0


def test_the_figure(result, tmp_path):
    ax = result.plot()
    lines = {line.get_label(): line for line in ax.get_lines() if not line.get_label().startswith("_")}
    assert list(lines) == [
        "MLP coefficients",
        "Value vectors",
        "Attention outputs",
        "MLP coefficients + Attention outputs",
    ]
    np.testing.assert_allclose(lines["Attention outputs"].get_ydata(), result.krs["attn_out"])
    levels = {float(line.get_ydata()[0]) for line in ax.get_lines() if line.get_label().startswith("_")}
    assert levels == {0.0, 1.0}
    assert "Layer" in ax.get_xlabel()
    ax.figure.savefig(tmp_path / "f.png")
    assert (tmp_path / "f.png").stat().st_size > 5000


def test_the_figure_takes_axes_and_named_windows(tmp_path):
    from matplotlib.figure import Figure

    v, u = pair("llama")
    result = krs.sweep(
        v, u, PROMPTS, settings="attn_out", windows=windows.of([[1, 2, 3], [2]]), n_tokens=3, progress=False
    )
    axes = Figure().add_subplot()
    assert result.plot(axes) is axes
    assert [t.get_text() for t in axes.get_xticklabels()] == ["1-3", "2"]
