"""Bars for those who watch, a line a stage for log files, nothing where nothing is asked for."""

import io
import sys

import transformers.trainer
from transformers.utils.notebook import NotebookProgressCallback

from krs import unlearn
from krs.progress import bar
from tests.tiny import build
from tests.unlearn.tiny_tokenizer import tiny_tokenizer


class _Terminal(io.StringIO):
    def isatty(self):
        return True


def _steps(show, to, monkeypatch):
    monkeypatch.setattr(sys, "stderr", to)
    with bar(3, "sweep", show=show, unit="step") as shown:
        for _ in range(3):
            shown.update()
            shown.set_postfix_str("more")
    return to.getvalue()


def test_a_terminal_gets_a_bar(monkeypatch):
    said = _steps(True, _Terminal(), monkeypatch)
    assert "sweep: 100%" in said
    assert "3/3" in said


def test_a_log_file_gets_one_line_a_stage(monkeypatch):
    assert _steps(True, io.StringIO(), monkeypatch) == "sweep: 3 steps\n"


def test_nothing_is_shown_where_nothing_is_asked_for(monkeypatch):
    for to in (io.StringIO(), _Terminal()):
        assert not _steps(False, to, monkeypatch)


def _unlearn(**options):
    given = {"forget": ["the cat sat"], "steps": 2, "tokenizer": tiny_tokenizer()}
    unlearn.run("ga", build("llama"), **given | options)


def test_training_shows_nothing_in_a_notebook_either_where_nothing_is_asked_for(monkeypatch, capsys):
    """transformers shows a table of its own there."""
    monkeypatch.setattr(transformers.trainer, "DEFAULT_PROGRESS_CALLBACK", NotebookProgressCallback)
    _unlearn(progress=False)
    said = capsys.readouterr()
    assert said.out + said.err == ""


def test_training_says_one_line_in_a_log_file(capsys):
    _unlearn()
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == "unlearn (ga): 2 steps\n"
