"""`krs plot`: figures and tables of saved results, one or several beside each other."""

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

import krs
from krs import KrsError
from krs.files import in_options
from tests.cli.told import ends, run, shown, told_by


def test_two_sweeps_in_one_figure_are_told_apart_and_named(place, tmp_path):
    found = krs.compare({"npo": krs.load_result(place / "a.krs"), "ga": krs.load_result(place / "b_50%.krs")})
    figure = Figure(layout="constrained")
    found.plot(figure)
    panels = {axes.get_title(): axes for axes in figure.axes}
    assert list(panels) == ["MLP coefficients", "Attention outputs"]
    lines = {line.get_label(): line for line in panels["Attention outputs"].get_lines() if line.get_label()[0] != "_"}
    assert list(lines) == ["npo", "ga"]
    np.testing.assert_array_equal(lines["ga"].get_ydata(), found.results["ga"].krs["attn_out"])
    assert (
        len({line.get_color() for line in lines.values()}) == len({line.get_marker() for line in lines.values()}) == 2
    )
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["npo", "ga"]
    assert figure.get_size_inches()[0] == 6.4
    for axes in figure.axes:
        drawn = np.concatenate([line.get_ydata() for line in axes.get_lines()])
        assert axes.get_ylim()[0] < drawn.min() < drawn.max() < axes.get_ylim()[1]
    for ending, begins in ((".pdf", b"%PDF"), (".png", b"\x89PNG"), (".svg", b"<?xml")):
        done = run("plot", place / "a.krs", place / "b_50%.krs", "-o", tmp_path / f"fig{ending}")
        assert done.exit_code == 0, done.exception
        assert (tmp_path / f"fig{ending}").read_bytes().startswith(begins)
    svg = (tmp_path / "fig.svg").read_text()
    assert {"a", "b_50%", "MLP coefficients"} <= set(re.findall(r"<text[^>]*>([^<]+)</text>", svg))


def test_the_same_figure_is_the_same_bytes_in_another_process_at_another_time(place, tmp_path):
    endings = (".pdf", ".svg", ".png")
    for ending in endings:
        names = [str(place / "a.krs"), str(place / "b_50%.krs")]
        assert run("plot", *names, "-o", tmp_path / f"here{ending}").exit_code == 0
    script = "import sys\nfrom krs.cli.shell import app\nimport krs.cli\n" + "".join(
        f"app({['plot', *names, '-o', str(tmp_path / f'there{ending}')]!r}, standalone_mode=False)\n"
        for ending in endings
    )
    later = os.environ | {"PYTHONHASHSEED": "7", "SOURCE_DATE_EPOCH": "1000000000"}
    subprocess.run([sys.executable, "-c", script], check=True, env=later, capture_output=True)
    for ending in endings:
        here, there = ((tmp_path / f"{name}{ending}").read_bytes() for name in ("here", "there"))
        assert here == there, ending


def test_one_result_of_each_kind_is_drawn(place, tmp_path):
    for name in ("a.krs", "map.krs", "mean.krs", "account.krs", "answers.json", "drift.csv"):
        done = run("plot", place / name, "-o", tmp_path / f"{name}.svg")
        assert done.exit_code == 0, done.exception
        assert "<text" in (tmp_path / f"{name}.svg").read_text()


@pytest.mark.parametrize("ending", ["png", "pdf", "svg"])
def test_a_figure_says_in_its_file_what_it_shows(place, tmp_path, ending):
    table = krs.load_result(place / "a.krs").krs
    shown = {name: ends(table[name]) for name in table}
    done = run("plot", place / "a.krs", "-o", tmp_path / f"a.{ending}")
    title, description = told_by(tmp_path / f"a.{ending}")
    assert title == "Knowledge Recovery Score: u, from v"
    assert description == (
        "Knowledge Recovery Score; u, from v; by layer; 2 prompts, 6 scored tokens. "
        "0 is as unlearned, 1 the vanilla model. "
        f"MLP coefficients: {shown['mlp_coef']}; Attention outputs: {shown['attn_out']}."
    )
    written, printed = done.stdout.split("\n", 1)
    assert written == f"written: {tmp_path / f'a.{ending}'}"
    assert printed.split() == description.split()
    assert max(map(len, printed.splitlines())) <= 80
    other = krs.load_result(place / "b_50%.krs").krs["attn_out"]
    names = "--name", "first <é>", "--name", "(ga)"
    assert run("plot", place / "a.krs", place / "b_50%.krs", *names, "-o", tmp_path / f"2.{ending}").exit_code == 0
    title, description = told_by(tmp_path / f"2.{ending}")
    assert title == "Knowledge Recovery Score: first <é>, (ga)"
    assert description == (
        "Knowledge Recovery Score by layer, of 2 sweeps: first <é>, (ga). Bands: 95% interval over prompts. "
        "first <é>: 2 prompts, (ga): 1 prompt. 0 is as unlearned, 1 the vanilla model. "
        f"MLP coefficients: first <é> {shown['mlp_coef']}. Attention outputs: first <é> {shown['attn_out']}; "
        f"(ga) {ends(other)}."
    )


def test_a_curve_without_height_is_told_in_a_word(place, tmp_path):
    result = krs.load_result(place / "a.krs")
    result.losses.restored[:4] = result.losses.baseline
    result.save(tmp_path / "flat.krs")
    assert "MLP coefficients: 0 everywhere; Attention outputs: highest 0." in _description(
        tmp_path / "flat.krs", tmp_path
    )
    assert "Attention outputs: highest " in (one := _description(place / "kl.krs", tmp_path))
    assert "lowest" not in one


def _description(file, folder):
    done = run("plot", file, "-o", folder / f"{file.stem}.svg")
    assert done.exit_code == 0, done.exception
    return told_by(folder / f"{file.stem}.svg")[1]


def test_bands_of_several_sweeps_say_what_they_are(place):
    first, second, mean = (krs.load_result(place / name) for name in ("a.krs", "b_50%.krs", "mean.krs"))
    told = {
        "bands: 95% interval over prompts\na: 2 prompts, b$: 1 prompt": {"a": first, "b$": second},
        "bands: 95% interval over prompts\n2 prompts each": {"a": first, "b": first},
        "1 prompt each": {"a": second, "b": second},
        "bands: 95% interval over prompts or ± 1 SD between the sweeps of a mean\na: 2 prompts, m: mean of 2 sweeps": {
            "a": first,
            "m": mean,
        },
    }
    for title, results in told.items():
        figure = Figure(layout="constrained")
        krs.compare(results).plot(figure, setting="attn_out")
        assert figure.axes[0].get_title().replace("\\$", "$") == f"{title}\nAttention outputs"
    figure = Figure(layout="constrained")
    krs.compare({"a": first, "b": second}).plot(figure, level=None)
    assert figure.legends[0].get_title().get_text() == "a: 2 prompts, b: 1 prompt"


def test_a_file_that_a_command_named_is_called_by_its_directory(place, tmp_path):
    for name in ("mine/sweep.krs", "lora_out/sweep.krs", "part_copy.krs"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((place / "b_50%.krs").read_bytes())
    for given, names in (
        (["mine/sweep.krs", "lora_out/sweep.krs"], "mine, lora_out"),
        (["part_copy.krs", "lora_out/sweep.krs"], "part_copy, lora_out"),
    ):
        done = run("plot", *(tmp_path / file for file in given), "-o", tmp_path / "f.svg", "--overwrite")
        assert done.exit_code == 0, done.exception
        assert told_by(tmp_path / "f.svg")[0] == f"Knowledge Recovery Score: {names}"


def test_every_kind_of_figure_says_what_it_shows_and_the_same_figure_is_the_same_file(place, tmp_path):
    said = {}
    for name in ("map.krs", "mean.krs", "account.krs", "answers.json", "drift.csv"):
        file = tmp_path / f"{name}.svg"
        assert run("plot", place / name, "-o", file).exit_code == 0
        first = file.read_bytes()
        run("plot", place / name, "-o", file, "--overwrite")
        assert file.read_bytes() == first
        said[name] = told_by(file)[1]
    best = krs.load_result(place / "map.krs").best().iloc[0]
    peak = f"highest {best.krs:z.2f} at layer {best.first_layer:.0f}, position {best.position:.0f}."
    assert said["map.krs"].endswith(f"Residual stream: {peak}")
    assert "mean of 2 sweeps with standard deviation: one, two. 0 is as unlearned, " in said["mean.krs"]
    shares = krs.metrics.load_account(place / "account.krs").by_component
    assert f"keys: {shares['keys']:.1%} of the difference" in said["account.krs"]
    assert "Target, 1 question: BLEU " in said["answers.json"]
    assert "keys: " in said["drift.csv"]
    assert not any("Made " in text or "note: " in text for text in said.values())


def test_tables_instead_of_a_figure(place, tmp_path):
    files = place / "a.krs", place / "b_50%.krs"
    csv = pd.read_csv(io.StringIO(run("plot", *files, "--format", "csv").stdout))
    result = krs.load_result(files[0])
    np.testing.assert_allclose(csv[csv["sweep"] == "a"].krs, result.to_frame().krs)
    done = run("plot", *files, "--format", "json", "--name", "npo", "--name", "ga", "-o", tmp_path / "t.json")
    assert done.exit_code == 0, done.exception
    assert {row["sweep"] for row in json.loads((tmp_path / "t.json").read_text())} == {"npo", "ga"}
    latex = run("plot", *files, "--format", "latex").stdout
    assert latex.count("\\begin{tabular}") == 2
    assert "\\caption{b\\_50\\%: Knowledge Recovery Score; " in latex
    assert "\\caption{a: Knowledge Recovery Score; u, from v; by layer; 2 prompts, 6 scored tokens.}" in latex
    assert run("plot", files[0], "--format", "latex").stdout.startswith("\\begin{table}\n\\caption{Knowl")


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["a.krs"], "a figure needs a file: -o fig.pdf"),
        (["a.krs", "-o", "fig.tif"], "give a name that ends in .pdf, .svg, .png"),
        (["a.krs", "answers.json", "-o", "f.pdf"], "these files hold answers and sweep: one figure or table is of"),
        (["account.krs", "account.krs", "-o", "f.pdf"], "2 files hold one account each"),
        (["a.krs", "a.krs", "-o", "f.pdf"], "a file was given twice"),
        (["a.krs", "--name", "x", "--name", "y", "-o", "f.pdf"], "--name was given 2 times for 1 results"),
        (["a.krs", "b_50%.krs", "--name", "x", "--name", "x", "-o", "f.pdf"], "--name was given twice alike"),
        (["a.krs", "--name", "x", "-o", "f.pdf"], "--name tells several results apart, and this is one sweep"),
        (["report.json", "-o", "f.pdf"], "a dissection has no figure of its own"),
        (["a.krs", "--format", "word"], "--format 'word': give one of latex, csv, json"),
        (["drift.csv", "--format", "latex"], "--format latex is for sweeps"),
        (["a.krs", "-o", "there.pdf"], "is there already: give another name, or --overwrite"),
        (["a.krs", "map.krs", "-o", "f.pdf"], "'map' is a map of layers and an axis, which no other lies on"),
        (["a.krs", "b_50%.krs", "--setting", "resid", "-o", "f.pdf"], "'resid' was not swept in any of these"),
        (["a.krs", "--measure", "kl", "-o", "f.pdf"], "'kl' was not measured: this result has logit_mse; ask for more"),
        (["kl.krs", "a.krs", "--measure", "kl", "-o", "f.pdf"], "'kl' was not measured in 'a': sweep that one again"),
        (["a.krs", "--setting", "resid", "--format", "csv"], "'resid' was not swept"),
        (["a.krs", "--setting", "resid", "--format", "latex"], "'resid' was not swept"),
        (["a.krs", "b_50%.krs", "--setting", "resid", "--format", "json"], "'resid' was not swept in any of these"),
        (["a.krs", "--measure", "kl", "--format", "csv"], "'kl' was not measured"),
        (["answers.json", "--setting", "resid", "-o", "f.pdf"], "--setting is of sweeps, and this is answers"),
        (["drift.csv", "--measure", "kl", "--format", "csv"], "--measure is of sweeps, and this is drift"),
    ],
)
def test_figures_that_cannot_be_are_refused(place, monkeypatch, args, says):
    monkeypatch.chdir(place)
    Path("there.pdf").write_text("of an earlier call")
    refused = run("plot", *args)
    assert isinstance(refused.exception, KrsError), refused.exception
    assert says in in_options(str(refused.exception))
    assert not Path("f.pdf").exists()
    Path("there.pdf").unlink()


def test_a_result_without_any_number_has_no_figure(place, tmp_path):
    result = krs.load_result(place / "a.krs")
    result.losses.restored[:] = np.nan
    result.save(tmp_path / "empty.krs")
    for given in ([tmp_path / "empty.krs"], [place / "b_50%.krs", tmp_path / "empty.krs"]):
        refused = run("plot", *given, "-o", tmp_path / "f.pdf")
        assert isinstance(refused.exception, KrsError), refused.exception
        assert "there is nothing to draw: " in str(refused.exception)
    assert not (tmp_path / "f.pdf").exists()


@pytest.fixture(scope="module")
def part(place):
    """Of `a.krs`, what is there when the second prompt has come to half of the layers."""
    result = krs.load_result(place / "a.krs")
    result.losses.restored.reshape(2, 4, 2, 3)[:, 2:, 1] = np.nan
    return result.save(place.parent / f"{place.name}-part.krs")


INTERRUPTED = "interrupted: 12 of 16 restorations"


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_the_figure_of_an_interrupted_sweep_says_so_and_keeps_its_layers(place, part, tmp_path, ending):
    done = run("plot", part, "-o", tmp_path / f"f.{ending}")
    assert done.exit_code == 0, done.exception
    title, told = told_by(tmp_path / f"f.{ending}")
    assert title == f"Knowledge Recovery Score: u, from v ({INTERRUPTED})"
    assert f"6 scored tokens; {INTERRUPTED}. " in told
    there = krs.load_result(place / "a.krs").krs["mlp_coef"][:2]
    assert f"MLP coefficients: highest so far {there.max():z.2f} at layer {there.idxmax()}, " in told
    assert f"last {there[1]:z.2f} at layer 1;" in told
    axes = krs.load_result(part).plot(Figure())
    assert INTERRUPTED in axes.get_title()
    whole = krs.load_result(place / "a.krs").plot(Figure())
    assert axes.get_xlim() == whole.get_xlim()
    assert "interrupted" not in whole.get_title()
    both = Figure(layout="constrained")
    krs.compare({"part": krs.load_result(part), "whole": krs.load_result(place / "a.krs")}).plot(both)
    assert f"part {INTERRUPTED}" in both.legends[0].get_title().get_text()


def test_tables_and_words_of_an_interrupted_sweep_say_so(place, part):
    assert f"2 prompts, 6 scored tokens; {INTERRUPTED}.}}" in run("plot", part, "--format", "latex").stdout
    done = run("plot", part, "--format", "csv")
    assert "interrupted" not in done.stdout
    assert f"was {INTERRUPTED} are there" in done.stderr
    assert {row["state"] for row in json.loads(run("plot", part, "--format", "json").stdout)} == {INTERRUPTED}
    rows = json.loads(run("plot", part, place / "b_50%.krs", "--format", "json").stdout)
    assert {(row["sweep"] == "b_50%", row["state"]) for row in rows} == {(True, None), (False, INTERRUPTED)}
    said = shown(part)
    assert f"It was {INTERRUPTED} are there; " in said
    assert "note: 4 of 16 restorations are not computed: the same command goes on with them\n" in said
    assert " so far, at layer " in said
    assert "interrupted" not in (whole := shown(place / "a.krs"))
    assert "so far" not in whole
    assert f" ({INTERRUPTED})" in repr(krs.load_result(part))


def test_a_table_has_the_setting_and_the_measure_that_are_asked_for(place):
    ask = "--setting", "attn_out", "--format"
    for given, wanted in (((place / "a.krs",), 1), ((place / "a.krs", place / "b_50%.krs"), 2)):
        latex = run("plot", *given, *ask, "latex").stdout
        assert "MLP coefficients" not in latex
        assert latex.count("Layer & Attention outputs") == wanted
        rows = json.loads(run("plot", *given, *ask, "json").stdout)
        csv = pd.read_csv(io.StringIO(run("plot", *given, *ask, "csv").stdout))
        assert {row["setting"] for row in rows} == set(csv.setting) == {"attn_out"}
        assert len(rows) == len(csv) == 4 * wanted
    whole, one = krs.load_result(place / "mean.krs"), run("plot", place / "mean.krs", *ask, "csv")
    mean = pd.read_csv(io.StringIO(one.stdout))
    np.testing.assert_allclose(mean["mean"], whole.recovery()["attn_out"])
    assert "MLP" not in run("plot", place / "mean.krs", *ask, "latex").stdout
    axis = pd.read_csv(io.StringIO(run("plot", place / "map.krs", "--setting", "resid", "--format", "csv").stdout))
    assert len(axis) == len(krs.load_result(place / "map.krs").to_frame())
    kl = pd.read_csv(io.StringIO(run("plot", place / "kl.krs", "--measure", "kl", "--format", "csv").stdout))
    np.testing.assert_allclose(kl.kl_recovery, krs.load_result(place / "kl.krs").recovery("kl")["attn_out"])


def test_results_that_cannot_be_compared_are_refused(place, as_a_user):
    result = krs.load_result(place / "a.krs")
    with pytest.raises(KrsError, match="krs.compare takes results by name, at least one"):
        krs.compare([result])
    with pytest.raises(KrsError, match="'x' is a DataFrame, no result of krs.sweep or krs.mean"):
        krs.compare({"x": result.krs})
    with pytest.raises(KrsError, match="there are 2 panels to draw, and one pair of axes"):
        krs.compare({"x": result}).plot(Figure().add_subplot())
