"""The `krs` command: thin, a file a sub-command."""

from krs.cli import account, answers, corpus, demo, drift, prepare, speak, study, sweep, unlearn
from krs.cli.shell import app, main

__all__ = [
    "account",
    "answers",
    "app",
    "corpus",
    "demo",
    "drift",
    "main",
    "prepare",
    "speak",
    "study",
    "sweep",
    "unlearn",
]
