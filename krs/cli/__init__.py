"""The `krs` command: thin, a file a sub-command."""

from krs.cli import account, answers, corpus, demo, doctor, drift, plot, prepare, show, speak, study, sweep, unlearn
from krs.cli.shell import app, main

__all__ = [
    "account",
    "answers",
    "app",
    "corpus",
    "demo",
    "doctor",
    "drift",
    "main",
    "plot",
    "prepare",
    "show",
    "speak",
    "study",
    "sweep",
    "unlearn",
]
