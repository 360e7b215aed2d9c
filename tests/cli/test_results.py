"""`krs show`: results in words; what `--overwrite` does."""

import json

import pytest
from typer.testing import CliRunner

import krs
from krs import KrsError
from krs.cli import app
from krs.files import in_options
from krs.names import told_apart
from tests.cli.told import QUESTIONS, ends, run, shown, told_by


def test_no_line_of_prose_is_wider_than_the_terminal_and_no_word_is_lost(place, tmp_path):
    report = {"method": "npo", "config": {"corpus": "/a path/" + "x" * 90, "note": "far " * 40}, "vanilla": {}}
    (tmp_path / "krs_unlearn.json").write_text(json.dumps(report))
    broken = CliRunner().invoke(app, ["show", str(place), str(tmp_path)], env={"COLUMNS": "80"}).stdout
    assert broken.split() == shown(place, tmp_path).split()
    lines = broken.splitlines()
    assert {line for line in lines if len(line) > 80 and not line.startswith(str(place.parent))} == {
        f"  /a path/{'x' * 90}"
    }
    after = lines[next(i for i, line in enumerate(lines) if line.startswith("- note: far")) + 1]
    assert after.startswith("  far far")
    for token in krs.metrics.load_vocabulary(place / "vocabulary.json").tokens.token:
        assert any(repr(token) in line for line in lines)


def test_a_sweep_in_words(place):
    result, said = krs.load_result(place / "a.krs"), shown(place / "a.krs")
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

    def of(given, **more):
        result.provenance["unlearned"] = kept | base | {"given_as": given} | more
        result.save(tmp_path / "a.krs", overwrite=True)
        return shown(tmp_path / "a.krs").splitlines()[1], result._pair

    assert of("runs/lora_out") == ("A sweep of lora_out (unlearned) beside v (vanilla).", "lora_out, from v")
    said = "A sweep of v with an adapter (unlearned) beside v (vanilla)."
    assert of("PeftModelForCausalLM") == (said, "v with an adapter, from v")
    assert of("LlamaForCausalLM")[0].startswith("A sweep of v, weights ")
    assert of("LlamaForCausalLM", name_or_path="")[0] == "A sweep of the unlearned model beside v (vanilla)."
    assert of("PosixPath", name_or_path="out/ga")[0] == "A sweep of ga (unlearned) beside v (vanilla)."
    assert of(".", name_or_path="out/ga")[1] == "ga, from v"
    assert krs.mean([result]).names == ("ga",)


def test_other_measures_are_told_of_and_drawn(place, tmp_path):
    peak = krs.load_result(place / "kl.krs").recovery("kl").iat[0, 0]
    assert f"Measured beside it: kl, whose recovery is at most attn_out {peak:.3f}." in shown(place / "kl.krs")
    done = run("plot", place / "kl.krs", "--measure", "kl", "-o", tmp_path / "kl.svg")
    assert done.exit_code == 0, done.exception
    assert "Recovery: KL" in (tmp_path / "kl.svg").read_text()


def test_every_other_kind_of_result_in_words(place):
    kinds = ("mean.krs", "map.krs", "account.krs", "answers.json", "drift.csv", "report.json", "vocabulary.json")
    said = dict(zip(kinds, (shown(place / name) for name in kinds), strict=True))
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
    said = shown(place)
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
    said = shown(tmp_path)
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
    refused = run("show", tmp_path / name)
    assert isinstance(refused.exception, KrsError)
    assert says in str(refused.exception)


def test_another_sweep_takes_the_place_of_the_first_only_if_asked(place, tmp_path):
    (tmp_path / "q.txt").write_text(f"{QUESTIONS[0]}\n")
    asked = ["sweep", place / "v", place / "u", "--prompts", tmp_path / "q.txt", "-o", tmp_path / "o", "--quiet"]
    asked += ["--n-tokens", 2, "--settings", "attn_out"]
    assert run(*asked, "--window", "last:2").exit_code == 0
    before = (tmp_path / "o/sweep.krs").read_bytes()
    refused = run(*asked, "--window", "0-1,3")
    assert "holds another sweep. What differs: windows" in str(refused.exception)
    assert refused.exception.__notes__ == ["--overwrite starts again in this directory"]
    assert in_options(str(refused.exception)).startswith(f"'{tmp_path}/o/sweep.krs' holds another sweep")
    wrong = run(*asked, "--window", "0-1,9", "--overwrite")
    assert "is out of range" in str(wrong.exception)
    assert (tmp_path / "o/sweep.krs").read_bytes() == before
    assert run(*asked, "--window", "0-1,3", "--overwrite").exit_code == 0
    found = krs.load_result(tmp_path / "o/sweep.krs")
    assert [w.layers for w in found.plan.windows] == [(0, 1), (3,)]
    best = found.krs.attn_out
    peak = f"Attention outputs: {ends(best)}."
    assert told_by(tmp_path / "o/fig1.png")[1].endswith(peak)
    assert {p.name for p in (tmp_path / "o").iterdir()} == {"sweep.krs", "krs.csv", "fig1.png"}
