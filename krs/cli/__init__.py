"""The `krs` command: thin, a file a sub-command."""

from krs.cli import account, answers, calibrate, corpus, demo, dissect, drift, prepare, speak, study, sweep, unlearn
from krs.cli.shell import app, main

__all__ = [
    "account",
    "answers",
    "app",
    "calibrate",
    "corpus",
    "demo",
    "dissect",
    "drift",
    "main",
    "prepare",
    "speak",
    "study",
    "sweep",
    "unlearn",
]
