"""`krs show`, `krs plot` and `krs doctor`; results side by side; what `--overwrite` does."""

import dataclasses
import io
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from typer.testing import CliRunner

import krs
from krs import KrsError, files
from krs.cli import app
from krs.files import in_options, windows
from krs.instruments.dissection import Dissection
from krs.instruments.facts import as_facts
from krs.instruments.reading import Reading
from krs.instruments.verdict import Verdict
from krs.names import told_apart
from krs.restore import plain
from krs.unlearn.methods import method
from tests.tiny import pair
from tests.unlearn.tiny_tokenizer import tiny_tokenizer

SVG, DC = "http://www.w3.org/2000/svg", "http://purl.org/dc/elements/1.1/"
QUESTIONS = ["who wrote the book", "the cat sat on"]


def _krs(*args):
    return CliRunner().invoke(app, [str(a) for a in args])


@pytest.fixture(scope="module")
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


def _shown(*files):
    """In a terminal so wide that no line is broken."""
    done = CliRunner().invoke(app, ["show", *map(str, files)], env={"COLUMNS": "1000"})
    assert done.exit_code == 0, done.exception
    return done.stdout


def test_no_line_of_prose_is_wider_than_the_terminal_and_no_word_is_lost(place, tmp_path):
    report = {"method": "npo", "config": {"corpus": "/a path/" + "x" * 90, "note": "far " * 40}, "vanilla": {}}
    (tmp_path / "krs_unlearn.json").write_text(json.dumps(report))
    broken = CliRunner().invoke(app, ["show", str(place), str(tmp_path)], env={"COLUMNS": "80"}).stdout
    assert broken.split() == _shown(place, tmp_path).split()
    lines = broken.splitlines()
    assert {line for line in lines if len(line) > 80 and not line.startswith(str(place.parent))} == {
        f"  /a path/{'x' * 90}"
    }
    after = lines[next(i for i, line in enumerate(lines) if line.startswith("- note: far")) + 1]
    assert after.startswith("  far far")
    for token in krs.metrics.load_vocabulary(place / "vocabulary.json").tokens.token:
        assert any(repr(token) in line for line in lines)


def test_a_sweep_in_words(place):
    result, said = krs.load_result(place / "a.krs"), _shown(place / "a.krs")
    best = result.best().loc["mlp_coef"]
    assert "A sweep of u (unlearned) beside v (vanilla)." in said
    assert f"- MLP coefficients (mlp_coef): at most {best.krs:.3f}, at layer {best.first_layer:.0f}\n" in said
    assert "2 prompts, " in said
    assert f"{result.answers[0]!r}" in said


def test_models_that_are_called_the_same_are_told_apart():
    def names(models):
        return list(told_apart({f"side {i}": model for i, model in enumerate(models)}).values())

    def of(place, weights="xxh3-128:0123456789"):
        return {"name_or_path": place, "identity": {"weights": weights}}

    assert names([of("/a/v"), of("/a/u")]) == ["v", "u"]
    assert names([of("/runs/npo/model"), of("/runs/ga/model"), of("/x")]) == ["npo/model", "ga/model", "x"]
    assert names([of("out/a/b/model"), of("out/c/b/model")]) == ["a/b/model", "c/b/model"]
    assert names([of("model"), of("out/model")]) == ["model", "out/model"]
    assert names([of("base"), of("base", "xxh3-128:fedcba98765")]) == [
        "base, weights 01234567",
        "base, weights fedcba98",
    ]
    assert names([of("base"), of("base")]) == ["base", "base"]
    assert names([{}, {"given_as": "smollm2"}]) == ["the side 0 model", "smollm2"]


def test_an_adapter_is_called_by_its_own_name_and_a_loaded_model_by_its_type_never(place, tmp_path):
    base = {"name_or_path": str(place / "v"), "class": "LlamaForCausalLM"}
    result = krs.load_result(place / "a.krs")
    kept = result.provenance["unlearned"]

    def shown(given, **more):
        result.provenance["unlearned"] = kept | base | {"given_as": given} | more
        result.save(tmp_path / "a.krs", overwrite=True)
        return _shown(tmp_path / "a.krs").splitlines()[1], result._pair

    assert shown("runs/lora_out") == ("A sweep of lora_out (unlearned) beside v (vanilla).", "lora_out, from v")
    said = "A sweep of v with an adapter (unlearned) beside v (vanilla)."
    assert shown("PeftModelForCausalLM") == (said, "v with an adapter, from v")
    assert shown("LlamaForCausalLM")[0].startswith("A sweep of v, weights ")
    assert shown("LlamaForCausalLM", name_or_path="")[0] == "A sweep of the unlearned model beside v (vanilla)."
    assert shown("PosixPath", name_or_path="out/ga")[0] == "A sweep of ga (unlearned) beside v (vanilla)."
    assert shown(".", name_or_path="out/ga")[1] == "ga, from v"
    assert krs.mean([result]).names == ("ga",)


def test_other_measures_are_told_of_and_drawn(place, tmp_path):
    peak = krs.load_result(place / "kl.krs").recovery("kl").iat[0, 0]
    assert f"Measured beside it: kl, whose recovery is at most attn_out {peak:.3f}." in _shown(place / "kl.krs")
    done = _krs("plot", place / "kl.krs", "--measure", "kl", "-o", tmp_path / "kl.svg")
    assert done.exit_code == 0, done.exception
    assert "Recovery: KL" in (tmp_path / "kl.svg").read_text()


def test_every_other_kind_of_result_in_words(place):
    kinds = ("mean.krs", "map.krs", "account.krs", "answers.json", "drift.csv", "report.json", "vocabulary.json")
    said = dict(zip(kinds, (_shown(place / name) for name in kinds), strict=True))
    table = krs.load_result(place / "mean.krs").recovery()["attn_out"]
    assert f"- attn_out: at most {table.max():.3f} (SD 0.000), at layer {table.idxmax()}" in said["mean.krs"]
    best = krs.load_result(place / "map.krs").best().iloc[0]
    assert f"at most {best.krs:.3f}, at layer {best.first_layer:.0f}, position {best.position:.0f}" in said["map.krs"]
    shares = krs.metrics.load_account(place / "account.krs").by_component
    assert f"- keys: {shares['keys']:.1%} of the difference, " in said["account.krs"]
    answers = krs.metrics.load_answers(place / "answers.json")
    assert f"Target, 1 question: BLEU {answers.table.bleu['target']:.1f} of " in said["answers.json"]
    assert f"vanilla:   {' '.join(answers.frame.vanilla[0].split())}" in said["answers.json"]
    moved = krs.metrics.drift(str(place / "v"), str(place / "u")).by_component().relative_change["keys"]
    assert f"- keys: {moved:.2e}, " in said["drift.csv"]
    told = krs.metrics.load_vocabulary(place / "vocabulary.json")
    assert f"layer 1, value vector 2: moved by {told.vectors.relative_change[0]:.3g}, " in said["vocabulary.json"]
    assert f"vanilla: {told.tokens.token[0]!r} {told.tokens.token[1]!r} " in said["vocabulary.json"]
    assert "Verdict: partly: half of it reads so\n3 facts; each instrument:\n- nll: 2 [" in said["report.json"]
    assert "- uds: not run (no time)" in said["report.json"]


def test_a_directory_shows_what_is_in_it_and_an_unlearned_models_report(place, tmp_path):
    said = _shown(place)
    assert [line for line in said.splitlines() if line.startswith(str(place))] == [
        str(place / name)
        for name in (
            "account.krs",
            "answers.json",
            "vocabulary.json",
            "report.json",
            "drift.csv",
            "a.krs",
            "b_50%.krs",
            "kl.krs",
            "map.krs",
            "mean.krs",
        )
    ]
    report = {"method": "npo", "config": {"steps": 1}, "vanilla": {"name_or_path": "some/v"}, "steps": 1}
    (tmp_path / "krs_unlearn.json").write_text(json.dumps(report | {"seconds": 2.0, "log": [{"loss": 0.25}]}))
    said = _shown(tmp_path)
    assert "An unlearned model, made by npo from v.\n1 step, last loss 0.25; 2 s.\nSettings:\n- steps: 1\n" in said


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("no.krs", None, "no file"),
        ("x.txt", "hello", "holds no result that krs can show: give a .krs file"),
        ("x.csv", "setting,krs\n", "holds no result that krs can show"),
        ("x.json", "[]", "holds no result that krs can show"),
        ("x.json", "{", "cannot read"),
        ("x.krs", "not arrays", "is not a result that krs saved"),
        ("", None, "is a directory without a result in it"),
    ],
)
def test_what_cannot_be_shown_is_refused(tmp_path, name, content, says):
    if content is not None:
        (tmp_path / name).write_text(content)
    refused = _krs("show", tmp_path / name)
    assert isinstance(refused.exception, KrsError)
    assert says in str(refused.exception)


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
        done = _krs("plot", place / "a.krs", place / "b_50%.krs", "-o", tmp_path / f"fig{ending}")
        assert done.exit_code == 0, done.exception
        assert (tmp_path / f"fig{ending}").read_bytes().startswith(begins)
    svg = (tmp_path / "fig.svg").read_text()
    assert {"a", "b_50%", "MLP coefficients"} <= set(re.findall(r"<text[^>]*>([^<]+)</text>", svg))


def test_the_same_figure_is_the_same_bytes_in_another_process_at_another_time(place, tmp_path):
    endings = (".pdf", ".svg", ".png")
    for ending in endings:
        names = [str(place / "a.krs"), str(place / "b_50%.krs")]
        assert _krs("plot", *names, "-o", tmp_path / f"here{ending}").exit_code == 0
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
        done = _krs("plot", place / name, "-o", tmp_path / f"{name}.svg")
        assert done.exit_code == 0, done.exception
        assert "<text" in (tmp_path / f"{name}.svg").read_text()


def _told_by(file):
    """The title and the description in a figure's file."""
    if file.suffix == ".png":
        with Image.open(file) as image:
            return image.info["Title"], image.info["Description"]
    if file.suffix == ".pdf":
        found = [_pdf_string(file.read_bytes(), name) for name in (b"Title", b"Subject")]
        return found[0], found[1]
    root = ElementTree.parse(file).getroot()
    title, description = list(root)[:2]
    assert (title.tag, description.tag) == (f"{{{SVG}}}title", f"{{{SVG}}}desc")
    assert root.get("role") == "img"
    assert root.get("aria-labelledby").split() == [title.get("id"), description.get("id")]
    assert len(root.findall(f"{{{SVG}}}title")) == 1
    about = [
        root.findtext(f".//{{http://creativecommons.org/ns#}}Work/{{{DC}}}{name}") for name in ("title", "description")
    ]
    assert about == [title.text, description.text]
    return title.text, description.text


def _pdf_string(content, name):
    text = re.search(rb"/%b \(((?:\\.|[^\\)])*)\)" % name, content, re.S)[1]
    text = re.sub(rb"\\(.)", lambda m: {b"n": b"\n", b"r": b"\r"}.get(m[1], m[1]), text, flags=re.S)
    return text.decode("utf-16" if text.startswith((b"\xff\xfe", b"\xfe\xff")) else "ascii")


@pytest.mark.parametrize("ending", ["png", "pdf", "svg"])
def test_a_figure_says_in_its_file_what_it_shows(place, tmp_path, ending):
    table = krs.load_result(place / "a.krs").krs
    shown = {name: _ends(table[name]) for name in table}
    done = _krs("plot", place / "a.krs", "-o", tmp_path / f"a.{ending}")
    title, description = _told_by(tmp_path / f"a.{ending}")
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
    assert _krs("plot", place / "a.krs", place / "b_50%.krs", *names, "-o", tmp_path / f"2.{ending}").exit_code == 0
    title, description = _told_by(tmp_path / f"2.{ending}")
    assert title == "Knowledge Recovery Score: first <é>, (ga)"
    assert description == (
        "Knowledge Recovery Score by layer, of 2 sweeps: first <é>, (ga). Bands: 95% interval over prompts. "
        "first <é>: 2 prompts, (ga): 1 prompt. 0 is as unlearned, 1 the vanilla model. "
        f"MLP coefficients: first <é> {shown['mlp_coef']}. Attention outputs: first <é> {shown['attn_out']}; "
        f"(ga) {_ends(other)}."
    )


def _ends(curve):
    low, high = (f"{curve[at]:z.2f} at layer {at}" for at in (curve.idxmin(), curve.idxmax()))
    return f"highest {high}, lowest {low}, last {curve.iloc[-1]:z.2f}"


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
    done = _krs("plot", file, "-o", folder / f"{file.stem}.svg")
    assert done.exit_code == 0, done.exception
    return _told_by(folder / f"{file.stem}.svg")[1]


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
        done = _krs("plot", *(tmp_path / file for file in given), "-o", tmp_path / "f.svg", "--overwrite")
        assert done.exit_code == 0, done.exception
        assert _told_by(tmp_path / "f.svg")[0] == f"Knowledge Recovery Score: {names}"


def test_every_kind_of_figure_says_what_it_shows_and_the_same_figure_is_the_same_file(place, tmp_path):
    said = {}
    for name in ("map.krs", "mean.krs", "account.krs", "answers.json", "drift.csv"):
        file = tmp_path / f"{name}.svg"
        assert _krs("plot", place / name, "-o", file).exit_code == 0
        first = file.read_bytes()
        _krs("plot", place / name, "-o", file, "--overwrite")
        assert file.read_bytes() == first
        said[name] = _told_by(file)[1]
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
    csv = pd.read_csv(io.StringIO(_krs("plot", *files, "--format", "csv").stdout))
    result = krs.load_result(files[0])
    np.testing.assert_allclose(csv[csv["sweep"] == "a"].krs, result.to_frame().krs)
    done = _krs("plot", *files, "--format", "json", "--name", "npo", "--name", "ga", "-o", tmp_path / "t.json")
    assert done.exit_code == 0, done.exception
    assert {row["sweep"] for row in json.loads((tmp_path / "t.json").read_text())} == {"npo", "ga"}
    latex = _krs("plot", *files, "--format", "latex").stdout
    assert latex.count("\\begin{tabular}") == 2
    assert "\\caption{b\\_50\\%: Knowledge Recovery Score; " in latex
    assert "\\caption{a: Knowledge Recovery Score; u, from v; by layer; 2 prompts, 6 scored tokens.}" in latex
    assert _krs("plot", files[0], "--format", "latex").stdout.startswith("\\begin{table}\n\\caption{Knowl")


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
    refused = _krs("plot", *args)
    assert isinstance(refused.exception, KrsError), refused.exception
    assert says in in_options(str(refused.exception))
    assert not Path("f.pdf").exists()
    Path("there.pdf").unlink()


def test_a_result_without_any_number_has_no_figure(place, tmp_path):
    result = krs.load_result(place / "a.krs")
    result.losses.restored[:] = np.nan
    result.save(tmp_path / "empty.krs")
    for given in ([tmp_path / "empty.krs"], [place / "b_50%.krs", tmp_path / "empty.krs"]):
        refused = _krs("plot", *given, "-o", tmp_path / "f.pdf")
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
    done = _krs("plot", part, "-o", tmp_path / f"f.{ending}")
    assert done.exit_code == 0, done.exception
    title, told = _told_by(tmp_path / f"f.{ending}")
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
    assert f"2 prompts, 6 scored tokens; {INTERRUPTED}.}}" in _krs("plot", part, "--format", "latex").stdout
    done = _krs("plot", part, "--format", "csv")
    assert "interrupted" not in done.stdout
    assert f"was {INTERRUPTED} are there" in done.stderr
    assert {row["state"] for row in json.loads(_krs("plot", part, "--format", "json").stdout)} == {INTERRUPTED}
    rows = json.loads(_krs("plot", part, place / "b_50%.krs", "--format", "json").stdout)
    assert {(row["sweep"] == "b_50%", row["state"]) for row in rows} == {(True, None), (False, INTERRUPTED)}
    said = _shown(part)
    assert f"It was {INTERRUPTED} are there; " in said
    assert "note: 4 of 16 restorations are not computed: the same command goes on with them\n" in said
    assert " so far, at layer " in said
    assert "interrupted" not in (whole := _shown(place / "a.krs"))
    assert "so far" not in whole
    assert f" ({INTERRUPTED})" in repr(krs.load_result(part))


def test_a_table_has_the_setting_and_the_measure_that_are_asked_for(place):
    ask = "--setting", "attn_out", "--format"
    for given, wanted in (((place / "a.krs",), 1), ((place / "a.krs", place / "b_50%.krs"), 2)):
        latex = _krs("plot", *given, *ask, "latex").stdout
        assert "MLP coefficients" not in latex
        assert latex.count("Layer & Attention outputs") == wanted
        rows = json.loads(_krs("plot", *given, *ask, "json").stdout)
        csv = pd.read_csv(io.StringIO(_krs("plot", *given, *ask, "csv").stdout))
        assert {row["setting"] for row in rows} == set(csv.setting) == {"attn_out"}
        assert len(rows) == len(csv) == 4 * wanted
    whole, one = krs.load_result(place / "mean.krs"), _krs("plot", place / "mean.krs", *ask, "csv")
    mean = pd.read_csv(io.StringIO(one.stdout))
    np.testing.assert_allclose(mean["mean"], whole.recovery()["attn_out"])
    assert "MLP" not in _krs("plot", place / "mean.krs", *ask, "latex").stdout
    axis = pd.read_csv(io.StringIO(_krs("plot", place / "map.krs", "--setting", "resid", "--format", "csv").stdout))
    assert len(axis) == len(krs.load_result(place / "map.krs").to_frame())
    kl = pd.read_csv(io.StringIO(_krs("plot", place / "kl.krs", "--measure", "kl", "--format", "csv").stdout))
    np.testing.assert_allclose(kl.kl_recovery, krs.load_result(place / "kl.krs").recovery("kl")["attn_out"])


def test_results_that_cannot_be_compared_are_refused(place, as_a_user):
    result = krs.load_result(place / "a.krs")
    with pytest.raises(KrsError, match="krs.compare takes results by name, at least one"):
        krs.compare([result])
    with pytest.raises(KrsError, match="'x' is a DataFrame, no result of krs.sweep or krs.mean"):
        krs.compare({"x": result.krs})
    with pytest.raises(KrsError, match="there are 2 panels to draw, and one pair of axes"):
        krs.compare({"x": result}).plot(Figure().add_subplot())


def test_the_doctor_finds_both_engines_alike_and_says_so_where_they_are_not(monkeypatch):
    done = _krs("doctor")
    assert done.exit_code == 0, done.output
    assert f"krs {krs.__version__}" in done.stdout
    assert "extra plot: matplotlib " in done.stdout
    apart = re.search(r"self-test on cpu in float64: fine, scores of the two engines differ by (\S+) at", done.stdout)
    assert float(apart[1]) < 1e-9
    real = plain.logits_at
    monkeypatch.setattr(plain, "logits_at", lambda *args: real(*args) + 1e-6 * torch.rand(()))
    wrong = _krs("doctor")
    assert wrong.exit_code == 1
    assert "self-test on cpu in float64: FAILED" in wrong.stdout


def test_methods_and_their_settings_with_defaults_and_what_they_mean():
    listed = _krs("methods").stdout.splitlines()
    assert [line.split(":")[0] for line in listed] == krs.unlearn.methods()
    for name in krs.unlearn.methods():
        said = _krs("methods", name).stdout
        assert "see its documentation" not in said, name
        for setting in dataclasses.fields(method(name).config_class):
            shown = re.search(rf"^- ({setting.name}=.*?): ", said, re.M)[1]
            default = files.setting(shown)[1]  # as --set would read it
            assert method(name).config_class(**{setting.name: default}) == method(name).config_class()
    said = _krs("methods", "npo_kl").stdout
    assert "needs --forget and --retain; settings" in said
    assert "\n- retain_weight=100.0: w of the retain term." in said
    assert "unknown unlearning method 'npoo'" in str(_krs("methods", "npoo").exception)


def test_the_doctor_knows_every_extra_and_all_that_it_brings():
    from krs.cli.doctor import _DISTRIBUTIONS, _EXTRAS

    project = tomllib.loads((Path(krs.__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = {extra: "\n".join(of) for extra, of in project["optional-dependencies"].items()}
    wanted = {extra: set(re.findall(r"^[\w-]+(?=>)", of, re.M)) for extra, of in extras.items()}
    assert "krs[unlearn]" in extras["study"]
    wanted["study"] |= wanted["unlearn"]
    for extra in ("docs", "test", "bench", "all"):  # nothing in krs asks for these
        del wanted[extra]
    own = {extra: {_DISTRIBUTIONS.get(name, name) for name in libraries} for extra, libraries in _EXTRAS.items()}
    assert own == wanted


def test_without_an_extra_the_doctor_says_how_to_get_it(monkeypatch):
    from krs.cli.doctor import _extras

    monkeypatch.setitem(sys.modules, "peft", None)
    (line,) = [line for line in _extras() if line.startswith("extra unlearn")]
    assert line == (
        "extra unlearn: not installed; it needs peft, which is not installed: pip install 'krs[unlearn]' (in a clone: "
        'pip install -e ".[unlearn]")'
    )


def test_the_package_is_the_command_and_refuses_before_torch(tmp_path):
    env = os.environ | {"PYTHONPATH": str(Path(krs.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "krs", "show", str(tmp_path / "no.krs")],
        capture_output=True,
        text=True,
        check=False,
        env=env,
    )
    assert done.returncode == 2
    assert f"krs: no file '{tmp_path / 'no.krs'}'" in done.stderr
    assert not re.search(r"\| +(torch|transformers|pandas|matplotlib)$", done.stderr, re.M)


def test_windows_as_an_option_has_them():
    assert windows("centred:3") == windows("3") == ("centred", (3,))
    assert windows("last:2") == ("last", (2,))
    assert windows("1-2,5") == ("of", ([[1, 2], [5]],))
    for wrong in ("4", "centred:2"):
        with pytest.raises(KrsError, match=f"--window {wrong}: .* so its size is odd: give ., or sliding:"):
            windows(wrong)
    for wrong in ("sliding", "sliding:0", "3-1", "x", "each:2", ""):
        with pytest.raises(KrsError, match=f"--window '{wrong}': give 5 or centred:5, sliding:4, each"):
            windows(wrong)


def test_another_sweep_takes_the_place_of_the_first_only_if_asked(place, tmp_path):
    (tmp_path / "q.txt").write_text(f"{QUESTIONS[0]}\n")
    run = ["sweep", place / "v", place / "u", "--prompts", tmp_path / "q.txt", "-o", tmp_path / "o", "--quiet"]
    run += ["--n-tokens", 2, "--settings", "attn_out"]
    assert _krs(*run, "--window", "last:2").exit_code == 0
    before = (tmp_path / "o/sweep.krs").read_bytes()
    refused = _krs(*run, "--window", "0-1,3")
    assert "holds another sweep. What differs: windows" in str(refused.exception)
    assert refused.exception.__notes__ == ["--overwrite starts again in this directory"]
    assert in_options(str(refused.exception)).startswith(f"'{tmp_path}/o/sweep.krs' holds another sweep")
    wrong = _krs(*run, "--window", "0-1,9", "--overwrite")
    assert "is out of range" in str(wrong.exception)
    assert (tmp_path / "o/sweep.krs").read_bytes() == before
    assert _krs(*run, "--window", "0-1,3", "--overwrite").exit_code == 0
    found = krs.load_result(tmp_path / "o/sweep.krs")
    assert [w.layers for w in found.plan.windows] == [(0, 1), (3,)]
    best = found.krs.attn_out
    peak = f"Attention outputs: {_ends(best)}."
    assert _told_by(tmp_path / "o/fig1.png")[1].endswith(peak)
    assert {p.name for p in (tmp_path / "o").iterdir()} == {"sweep.krs", "krs.csv", "fig1.png"}
