import contextlib
import importlib
import inspect
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import typer
from typer.testing import CliRunner

import krs
from krs import KrsError
from krs.cli import app, busy, main
from krs.files import in_options, questions, read_prompts, texts
from tests.tiny import build, pair
from tests.unlearn.tiny_tokenizer import tiny_tokenizer


def _krs(*args):
    command = [sys.executable, "-m", "krs.cli", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_version_and_help():
    assert CliRunner().invoke(app, ["--version"]).output.strip() == krs.__version__
    shown = CliRunner().invoke(app, ["--help"]).output
    assert "demo" in shown
    assert "sweep" in shown


def test_a_help_and_an_error_of_usage_are_plain_text_in_a_pipe():
    """With what each command does in full, which click alone cuts."""
    shown, wrong = _krs("--help").stdout, _krs("sweep", "--promts").stderr
    assert shown.startswith("Usage: ")
    assert "\nError: No such option: --promts" in wrong
    assert not {"\x1b", "─", "│", "╭"} & {*shown, *wrong}
    assert "..." not in shown.replace("[ARGS]...", "")
    told = " ".join(shown.split())
    for name, command in typer.main.get_command(app).commands.items():
        assert f"{name} {command.help.split(chr(10))[0]}" in told


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="no terminals to pretend here")
def test_a_help_has_its_boxes_in_a_terminal():
    mine, its = os.openpty()
    command = [sys.executable, "-m", "krs.cli", "show", "--help"]
    subprocess.run(command, stdin=its, stdout=its, stderr=its, check=True, env=os.environ | {"TERM": "xterm"})
    os.close(its)
    assert "╭" in os.read(mine, 10_000).decode(errors="replace")
    os.close(mine)


def test_paragraphs_of_a_help_break_where_the_terminal_ends(monkeypatch):
    monkeypatch.setattr(app, "rich_markup_mode", "rich")
    for name, command in typer.main.get_command(app).commands.items():
        assert command.help, name
        assert all("\n" not in paragraph for paragraph in command.help.split("\n\n")), name
    shown = CliRunner().invoke(app, ["study", "--help"], env={"COLUMNS": "80", "TERMINAL_WIDTH": "80"}).output
    lines = [line.strip() for line in shown.splitlines()]
    full = lines[lines.index("of it.") + 2 :]
    full = full[: full.index("") - 1]  # the last one ends where the paragraph does
    assert len(full) > 2
    assert all(len(line) > 60 for line in full)


def test_a_sweep_from_the_shell_and_again(tmp_path):
    for name, model in zip("vu", pair("llama"), strict=True):
        model.save_pretrained(tmp_path / name)
        tiny_tokenizer().save_pretrained(tmp_path / name)
    (tmp_path / "p.txt").write_text("who wrote the book\n\nthe cat sat on\n")
    args = ["sweep", tmp_path / "v", tmp_path / "u", "--prompts", tmp_path / "p.txt", "-o", tmp_path / "out"]
    options = ["--window", 3, "--n-tokens", 3, "--settings", "attn_out", "--quiet"]
    done = _krs(*args, *options)
    assert done.returncode == 0, done.stderr
    assert "attn_out" in done.stdout
    in_process = CliRunner()
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"sweep.krs", "krs.csv", "fig1.png"}
    result = krs.load_result(tmp_path / "out" / "sweep.krs")
    assert result.krs.shape == (4, 1)
    assert result.prompts == ("who wrote the book", "the cat sat on")
    again = in_process.invoke(app, [str(a) for a in (*args, *options)])
    assert again.exit_code == 0
    other = in_process.invoke(app, [str(a) for a in (*args, *options, "--chat")])
    assert isinstance(other.exception, KrsError)
    assert "holds another sweep. What differs: prompts (the first is prompt 0: " in str(other.exception)


def test_measures_direction_and_positions_from_the_shell(tmp_path, saved_pair_of_words):
    (tmp_path / "p.txt").write_text("who wrote the book\nthe cat sat on\n")
    (tmp_path / "s.txt").write_text("book\ncat\n")
    models, out = saved_pair_of_words, tmp_path / "out"
    args = ["sweep", *models, "--prompts", tmp_path / "p.txt", "-o", out, "--n-tokens", 3, "--quiet", "--window", 1]
    args += ["--settings", "attn_out", "--measure", "kl", "--measure", "top1", "--direction", "transplant"]
    subject = ["--positions", "last_subject", "--subjects", tmp_path / "s.txt"]
    done = CliRunner().invoke(app, [str(a) for a in [*args, *subject]])
    assert done.exit_code == 0, done.exception
    result = krs.load_result(out / "sweep.krs")
    assert result.plan.positions == ((3,), (1,))
    assert result.direction == "transplant"
    table = pd.read_csv(out / "krs.csv")
    np.testing.assert_allclose(table.kl, result.table("kl")["attn_out"])
    np.testing.assert_allclose(table.kl_recovery, result.recovery("kl")["attn_out"])
    args[args.index(out)] = tmp_path / "map"
    done = CliRunner().invoke(app, [str(a) for a in [*args, "--positions", "each"]])
    assert done.exit_code == 0, done.exception
    result, table = krs.load_result(tmp_path / "map" / "sweep.krs"), pd.read_csv(tmp_path / "map" / "krs.csv")
    row = table[(table.window == 2) & (table.position == -1)].iloc[0]
    assert row.kl == pytest.approx(result.table("kl")["attn_out", -1][2])
    dry = CliRunner().invoke(app, [str(a) for a in [*args, "--positions", "each", "--dry-run"]])
    assert "each of 6 positions" in dry.output, dry.exception
    wrong = CliRunner().invoke(app, [str(a) for a in [*args, "--positions", "subject"]])
    assert "--positions 'subject' needs to know the subject of each prompt" in in_options(str(wrong.exception))


@pytest.fixture
def saved_pair_of_words(tmp_path):
    for name, model in zip("vu", pair("llama"), strict=True):
        model.save_pretrained(tmp_path / name)
        tiny_tokenizer().save_pretrained(tmp_path / name)
    return tmp_path / "v", tmp_path / "u"


def test_unlearning_and_drift_from_the_shell(tmp_path):
    model = pair("llama")[0]
    model.save_pretrained(tmp_path / "v")
    tiny_tokenizer().save_pretrained(tmp_path / "v")
    (tmp_path / "f.jsonl").write_text('{"prompt": "who wrote", "answer": "the cat"}\n"a dog ran in the sun"\n')
    args = ["unlearn", "simnpo", "--model", tmp_path / "v", "--forget", tmp_path / "f.jsonl", "-o", tmp_path / "u"]
    run = [str(a) for a in (*args, "--quiet", "--set", "steps=2", "--set", "learning_rate=1e-2", "--chat")]
    done = CliRunner().invoke(app, run)
    assert done.exit_code == 0, done.exception
    report = json.loads((tmp_path / "u" / "krs_unlearn.json").read_text())
    assert report["method"] == "simnpo"
    assert report["config"]["learning_rate"] == 1e-2
    again = CliRunner().invoke(app, run)
    assert "is not empty" in str(again.exception)
    over = CliRunner().invoke(app, [*run, "--overwrite"])
    assert "simnpo: 2 steps, last loss" in over.output
    wrong = CliRunner().invoke(app, [*run, "--set", "steps"])
    assert "write it as name=value" in str(wrong.exception)
    shown = CliRunner().invoke(app, ["drift", str(tmp_path / "v"), str(tmp_path / "u"), "-o", str(tmp_path / "d")])
    assert "value_vectors" in shown.output
    assert {p.name for p in (tmp_path / "d").iterdir()} == {"drift.csv", "drift.png"}
    (tmp_path / "d" / "drift.csv").write_text("of an earlier call")
    again = ["drift", str(tmp_path / "v"), str(tmp_path / "u"), "-o", str(tmp_path / "d")]
    refused = CliRunner().invoke(app, again)
    assert "holds what an earlier call wrote: give another directory, or overwrite=True" in str(refused.exception)
    assert (tmp_path / "d" / "drift.csv").read_text() == "of an earlier call"
    assert CliRunner().invoke(app, [*again, "--overwrite"]).exit_code == 0
    assert (tmp_path / "d" / "drift.csv").read_text() != "of an earlier call"


def test_errors_are_one_message_without_a_traceback(tmp_path):
    (tmp_path / "p.txt").write_text("hello\n")
    done = _krs("sweep", "./nowhere", "./nowhere", "--prompts", tmp_path / "p.txt", "-o", tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("krs: no such path: './nowhere'")
    assert "Traceback" not in done.stderr


def test_a_name_that_is_nowhere_is_told_of_before_torch_is_imported(tmp_path):
    (tmp_path / "p.txt").write_text("hello\n")
    code = """
import sys
from krs.cli import main
try:
    main()
finally:
    print("torch" in sys.modules, "transformers" in sys.modules)
"""
    command = [sys.executable, "-c", code, "sweep", "no/such", "model", "--prompts", str(tmp_path / "p.txt")]
    env = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")}
    done = subprocess.run(
        [*command, "-o", str(tmp_path / "o")], capture_output=True, text=True, check=False, env=env, cwd=os.getcwd()
    )
    assert done.returncode == 2
    assert done.stderr.startswith("krs: 'no/such' is neither a local path nor a model that the hub gives here: the hub")
    assert done.stdout.split() == ["False", "False"]


def test_answers_are_not_written_over_unasked(tmp_path):
    (tmp_path / "said").mkdir()
    for name in ("answers.json", "fig2.png"):
        (tmp_path / "said" / name).write_text("of an earlier call")
    build("llama").save_pretrained(tmp_path / "v")
    tiny_tokenizer().save_pretrained(tmp_path / "v")
    (tmp_path / "q.txt").write_text("who wrote the book\n")
    run = ["answers", str(tmp_path / "v"), str(tmp_path / "v"), "--target", str(tmp_path / "q.txt"), "--quiet"]
    run += ["--n-tokens", "4", "-o", str(tmp_path / "said")]
    refused = CliRunner().invoke(app, run)
    assert "holds what an earlier call wrote: give another directory, or overwrite=True" in str(refused.exception)
    done = CliRunner().invoke(app, [*run, "--overwrite"])
    assert done.output.rstrip().endswith("said/: answers.json, answers.csv, answers.md")
    assert {p.name for p in (tmp_path / "said").iterdir()} == {"answers.json", "answers.csv", "answers.md"}
    found = krs.metrics.load_answers(tmp_path / "said" / "answers.json")
    assert len(found.token_ids["unlearned"][0]) == 4  # no end came
    answer = " ".join(found.frame.unlearned[0].split()) + "…"
    assert f"- who wrote the book\n  vanilla:   {answer}\n  unlearned: {answer}\n" in done.output
    assert f"**who wrote the book**\n\n- vanilla: {answer}\n" in (tmp_path / "said" / "answers.md").read_text()


def test_errors_name_options_and_not_pythons_keywords():
    """Every argument of a call that the command hands on, in the words in which a message names it."""
    calls = {"sweep": krs.sweep, "answers": krs.metrics.answers, "account": krs.account, "drift": krs.metrics.drift}
    calls["vocabulary"] = krs.metrics.vocabulary
    for name, call in calls.items():
        options = {o for p in typer.main.get_command(app).commands[name].params for o in p.opts}
        for argument in inspect.signature(call).parameters:
            option = {"windows": "--window", "measures": "--measure", "chat_template_kwargs": "--template-arg"}
            option = option.get(argument, f"--{argument.replace('_', '-')}")
            if option in options:
                assert in_options(f"{argument}='x': not so").startswith(f"{option} "), argument
    assert in_options("give subjects=, one each") == "give --subjects, one each"
    assert in_options("give subjects=, one each", "unlearn") == "give --set subjects=, one each"


def test_arguments_of_the_chat_template_reach_the_answers(tmp_path):
    from tests.prompts.tokenizers import tokenizer_with

    build("llama").save_pretrained(tmp_path / "v")
    tokenizer_with().save_pretrained(tmp_path / "v")
    (tmp_path / "q.txt").write_bytes("who wrote the book\u2028\r\n".encode("utf-16"))
    run = ["answers", str(tmp_path / "v"), str(tmp_path / "v"), "--target", str(tmp_path / "q.txt"), "--quiet"]
    run += ["--n-tokens", "4", "-o", str(tmp_path / "said"), "--template-arg", "enable_thinking=true"]
    done = CliRunner().invoke(app, [*run, "--chat"])
    assert done.exit_code == 0, done.exception
    found = krs.metrics.load_answers(tmp_path / "said" / "answers.json")
    assert found.provenance["chat_template_kwargs"] == {"enable_thinking": True}
    assert found.frame.question.tolist() == ["who wrote the book\u2028"]
    bare = CliRunner().invoke(app, [*run, "--overwrite"])
    assert "--template-arg is for chat messages" in in_options(str(bare.exception))


def test_prompt_files(tmp_path):
    chat = [{"role": "user", "content": "hi"}]
    (tmp_path / "a.json").write_text(json.dumps(["one", chat]))
    (tmp_path / "a.jsonl").write_text('"one"\n\n' + json.dumps(chat) + "\n")
    assert read_prompts(tmp_path / "a.json") == read_prompts(tmp_path / "a.jsonl") == ["one", chat]
    (tmp_path / "b.json").write_text("{")
    with pytest.raises(KrsError, match="is not valid JSON"):
        read_prompts(tmp_path / "b.json")
    (tmp_path / "c.json").write_text("{}")
    with pytest.raises(KrsError, match="holds a dict"):
        read_prompts(tmp_path / "c.json")
    with pytest.raises(KrsError, match="no such file"):
        read_prompts(tmp_path / "none")
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(KrsError, match="empty.txt' holds nothing"):
        read_prompts(tmp_path / "empty.txt")
    (tmp_path / "pairs.jsonl").write_text(json.dumps({"prompt": "who", "answer": "she"}))
    with pytest.raises(KrsError, match="pairs.jsonl' holds more than questions"):
        questions(tmp_path / "pairs.jsonl", chat=True)


def test_text_files(tmp_path):
    rows = [{"text": "a line\u2028and another", "alias": "x"}, {"prompt": "who", "answer": "she"}, "plain"]
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps(r, ensure_ascii=False) for r in rows), encoding="utf-8")
    assert texts(tmp_path / "t.jsonl") == [rows[0]["text"], rows[1], "plain"]
    assert texts(tmp_path / "t.jsonl", chat=True)[1] == {
        "prompt": [{"role": "user", "content": "who"}],
        "answer": "she",
    }


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--version"], "0."),
        (["sweep", "--help"], "--prompts"),
        (["sweep", "a", "b", "--promts", "x"], "No such option"),
        (["sweep", "a", "b", "--prompts", "none.txt", "-o", "out"], "no such file: 'none.txt'"),
        (["sweep", "./a", "b", "--prompts", "none.txt", "-o", "out"], "no such path: './a'"),
        (["drift", "smolm2", "b"], "did you mean 'smollm2'"),
        (["answers", "a", "b", "--target", "none.txt", "-o", "out"], "no such file: 'none.txt'"),
        (["unlearn", "ga", "--model", "m", "--forget", "none.txt", "-o", "out"], "no such file: 'none.txt'"),
    ],
)
def test_what_a_mistyped_command_says_does_not_wait_for_torch(args, says, tmp_path):
    code = (
        "import sys\nfrom krs.cli import main\n"
        f"sys.argv = ['krs', *{args!r}]\n"
        "try:\n    main()\nfinally:\n    print('torch' in sys.modules, 'transformers' in sys.modules)"
    )
    env = os.environ | {"PYTHONPATH": str(Path(krs.__file__).parents[1])}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=env)
    assert says in done.stdout + done.stderr
    assert done.stdout.rstrip().endswith("False False")


@pytest.fixture
def saved_pair(tmp_path):
    for name, model in zip("vu", pair("llama"), strict=True):
        model.save_pretrained(tmp_path / name)
        tiny_tokenizer().save_pretrained(tmp_path / name)
    (tmp_path / "q.txt").write_text("who wrote the book\nthe cat sat on\n")
    return tmp_path


def _interrupt_forwards_after(monkeypatch, n):
    """Ctrl-C at the plain engine's forward after n."""
    from krs.restore import plain

    real, calls = plain.logits_at, []

    def interrupted(*args):
        calls.append(1)
        if len(calls) > n:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(plain, "logits_at", interrupted)


def test_an_interrupted_sweep_says_where_it_is_and_the_same_command_goes_on(saved_pair, monkeypatch):
    out = saved_pair / "new" / "out"
    run = ["sweep", saved_pair / "v", saved_pair / "u", "--prompts", saved_pair / "q.txt", "-o", out, "--quiet"]
    run = [*map(str, run), "--window", "3", "--n-tokens", "3", "--settings", "attn_out", "--engine", "plain"]
    _interrupt_forwards_after(monkeypatch, 4)
    stopped = CliRunner().invoke(app, run)
    monkeypatch.undo()
    assert stopped.exit_code == 130
    said = (
        f"krs: interrupted; what was done, 4 of 8 restorations, is in '{out}/sweep.krs'; the same command goes on from "
    )
    assert stopped.stderr == said + "there\n"
    done = CliRunner().invoke(app, run)
    assert done.exit_code == 0
    assert [p["restorations"] for p in krs.load_result(out / "sweep.krs").provenance["parts"]] == [2, 2]


def test_interrupted_questions_keep_the_vanilla_answers_for_the_same_command(saved_pair, monkeypatch):
    module = importlib.import_module("krs.metrics.asking")
    out, real, asked = saved_pair / "out", module.greedy, []

    def greedy(*args, **options):
        asked.append(options["doing"])
        if len(asked) == 2:
            raise KeyboardInterrupt
        return real(*args, **options)

    monkeypatch.setattr(module, "greedy", greedy)
    run = ["answers", saved_pair / "v", saved_pair / "u", "--target", saved_pair / "q.txt", "-o", out, "--quiet"]
    run = [*map(str, run), "--n-tokens", "3"]
    stopped = CliRunner().invoke(app, run)
    assert stopped.exit_code == 130
    there = "the answers so far (2 of 2 vanilla and 0 of 2 unlearned)"
    said = f"krs: interrupted; {there} are in '{out}/answers.part.json'; the same command goes on from there\n"
    assert stopped.stderr == said
    assert [p.name for p in out.iterdir()] == ["answers.part.json"]
    assert CliRunner().invoke(app, run).exit_code == 0
    assert asked == ["answers (vanilla)", "answers (unlearned)", "answers (unlearned)"]
    assert {p.name for p in out.iterdir()} == {"answers.json", "answers.csv", "answers.md"}


def test_a_command_that_could_not_write_says_so_first_and_one_that_fails_leaves_no_folder(saved_pair):
    v, u, q = (str(saved_pair / name) for name in ("v", "u", "q.txt"))
    for run in (["sweep", v, u, "--prompts", q], ["answers", v, u, "--target", q], ["drift", v, u]):
        refused = CliRunner().invoke(app, [*run, "-o", q])
        assert f"--output: '{q}' is a file: give a directory" in str(refused.exception)
        failed = CliRunner().invoke(app, [run[0], v, v + "-not", *run[3:], "-o", str(saved_pair / "new" / "out")])
        assert isinstance(failed.exception, KrsError)
    refused = CliRunner().invoke(app, ["prepare", "harry_potter", "--model", v, "-o", q])
    assert f"output: '{q}' is a file: give a directory" in str(refused.exception)
    (saved_pair / "c.jsonl").write_text('{"text": "a cat sat on the moon"}')
    refused = CliRunner().invoke(app, ["corpus", str(saved_pair / "c.jsonl"), "--concept", "x", "-o", f"{q}/o.jsonl"])
    assert f"output: '{q}/o.jsonl.part' cannot be written" in str(refused.exception)
    assert {p.name for p in saved_pair.iterdir()} == {"v", "u", "q.txt", "c.jsonl"}


def test_files_have_the_permissions_of_the_users_others(saved_pair):
    import os

    out, before = saved_pair / "out", os.umask(0o022)
    try:
        run = ["sweep", saved_pair / "v", saved_pair / "u", "--prompts", saved_pair / "q.txt", "-o", out, "--quiet"]
        assert CliRunner().invoke(app, [*map(str, run), "--n-tokens", "2", "--settings", "attn_out"]).exit_code == 0
    finally:
        os.umask(before)
    assert {p.name: oct(p.stat().st_mode & 0o777) for p in out.iterdir()} == dict.fromkeys(
        ("sweep.krs", "krs.csv", "fig1.png"), "0o644"
    )


def test_without_matplotlib_the_figure_is_left_out_and_said_so(saved_pair, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    done = CliRunner().invoke(app, ["drift", str(saved_pair / "v"), str(saved_pair / "u"), "-o", str(saved_pair / "d")])
    assert done.exit_code == 0
    assert done.stderr.startswith("krs: drift.png is left out: a figure needs matplotlib, which is not installed: pip")
    assert [p.name for p in (saved_pair / "d").iterdir()] == ["drift.csv"]


def test_an_account_from_the_shell(saved_pair, tmp_path):
    (tmp_path / "p.txt").write_text("who wrote the book\nthe cat sat on\n")
    pair_of = [str(saved_pair / "v"), str(saved_pair / "u"), "--prompts", str(tmp_path / "p.txt")]
    args = ["account", *pair_of, "--unrelated", str(tmp_path / "p.txt"), "--n-tokens", "3", "--points", "8", "-q"]
    done = CliRunner().invoke(app, [*args, "-o", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"account.krs", "account.csv", "account.png"}
    assert "value_vectors" in done.output
    assert krs.metrics.load_account(tmp_path / "out" / "account.krs").points == 8


def test_value_vectors_as_tokens_from_the_shell(saved_pair, tmp_path):
    run = ["vocabulary", str(saved_pair / "v"), str(saved_pair / "u"), "--count", "2", "--top", "3"]
    done = CliRunner().invoke(app, [*run, "-o", str(tmp_path / "d")])
    assert done.exit_code == 0, done.exception
    assert {p.name for p in (tmp_path / "d").iterdir()} == {"vocabulary.json", "vocabulary.csv"}
    wanted = krs.metrics.vocabulary(str(saved_pair / "v"), str(saved_pair / "u"), count=2, top=3)
    found = krs.metrics.load_vocabulary(tmp_path / "d" / "vocabulary.json")
    assert found.tokens.equals(wanted.tokens)
    assert repr(wanted) in done.output
    assert isinstance(CliRunner().invoke(app, [*run, "-o", str(tmp_path / "d")]).exception, KrsError)
    told = [{"Concept": name, "QA": ["Who?"], "Layer": layer, "Dim": 5} for name, layer in (("Emma", 1), ("Tea", 2))]
    (tmp_path / "c.json").write_text(json.dumps(told))
    for name, places in ((["--name", "tea"], [(2, 5)]), ([], [(1, 5), (2, 5)])):
        options = [
            "--concept",
            str(tmp_path / "c.json"),
            *name,
            "--at",
            "3:0",
            "-o",
            str(tmp_path / "e"),
            "--overwrite",
        ]
        done = CliRunner().invoke(app, ["vocabulary", str(saved_pair / "v"), *options])
        assert done.exit_code == 0, done.exception
        named = krs.metrics.load_vocabulary(tmp_path / "e" / "vocabulary.json").vectors
        assert list(zip(named.layer, named.unit, strict=True)) == [(3, 0), *places]
    for wrong, says in ((["--at", "3"], "--at '3': give a layer"), (["--name", "x"], "--name 'x' says which concept")):
        assert says in str(CliRunner().invoke(app, [*run, *wrong]).exception)
    assert "or --at LAYER:UNIT" in in_options(
        str(CliRunner().invoke(app, ["vocabulary", str(saved_pair / "v")]).exception)
    )


def test_a_busy_machine_is_mentioned_where_work_begins_and_not_before_an_error_nor_where_it_is_quiet(
    saved_pair_of_words, tmp_path, monkeypatch, capsys
):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(busy, "_cores_and_load", lambda: (2, 3.0))
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # `main` is the entry point of a process of its own
    (tmp_path / "p.txt").write_text("who wrote the book\n")

    def said(vanilla, out, *more):
        run = ["krs", "sweep", vanilla, saved_pair_of_words[1], "--prompts", tmp_path / "p.txt", "-o", tmp_path / out]
        monkeypatch.setattr("sys.argv", [*map(str, run), "--n-tokens", "2", "--settings", "attn_out", *more])
        with contextlib.suppress(SystemExit):
            main()
        return capsys.readouterr().err

    vanilla, note = (
        saved_pair_of_words[0],
        "note: other work keeps the 2 cores busy (load 3.0): OMP_NUM_THREADS=1 before",
    )
    first = said(vanilla, "a")
    assert first.count(note) == 1
    loading = f"loading {vanilla} and {saved_pair_of_words[1]}\n"
    assert first.startswith(loading)
    assert first.count("loading ") == 1
    quiet = said(vanilla, "b", "--quiet")
    assert note not in quiet
    assert "loading" not in quiet
    assert said("./nowhere", "c").startswith("krs: no such path")
    monkeypatch.setattr(busy, "_cores_and_load", lambda: (2, 1.0))
    assert note not in said(vanilla, "d")


def test_the_settings_that_the_help_of_sweep_names_are_settings():
    (option,) = (p for p in typer.main.get_command(app).commands["sweep"].params if p.name == "settings")
    names = re.findall(r"\w+(?:\+\w+|\.\w+\([\d,]+\))", option.help)
    assert [krs.hooks.setting(name).name.replace(", ", ",") for name in names] == names
    assert len(names) == 3
