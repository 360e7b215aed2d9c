"""The `krs` command: thin, a file a sub-command."""

from krs.cli import (
    account,
    answers,
    corpus,
    demo,
    doctor,
    drift,
    methods,
    plot,
    prepare,
    show,
    speak,
    study,
    sweep,
    unlearn,
)
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
    "methods",
    "plot",
    "prepare",
    "show",
    "speak",
    "study",
    "sweep",
    "unlearn",
]
