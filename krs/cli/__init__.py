"""The `krs` command: thin, a file a sub-command."""

from krs.cli import (
    account,
    answers,
    calibrate,
    corpus,
    demo,
    dissect,
    doctor,
    drift,
    methods,
    plot,
    prepare,
    report,
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
    "calibrate",
    "corpus",
    "demo",
    "dissect",
    "doctor",
    "drift",
    "main",
    "methods",
    "plot",
    "prepare",
    "report",
    "show",
    "speak",
    "study",
    "sweep",
    "unlearn",
]
