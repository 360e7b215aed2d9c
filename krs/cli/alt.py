"""What a figure shows, in words, for whoever does not see it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from krs.cli.words import words

_TITLES = {
    "answers": "BLEU on unrelated questions over BLEU on target questions",
    "account": "Which weights make the logits differ, components by layers",
    "drift": "How far weights have moved, components by layers",
}
_APART = ("  ", "Made ", "note: ")
"""Beginnings of lines of `words` that are not about what is drawn."""


def in_words(
    results: Mapping[str, Any], kind: str, measure: str = "logit_mse", setting: str | None = None
) -> tuple[str, str]:
    """A title and a description of the figure of results of a kind of `krs.saved`, made of their own numbers."""
    (first, *others) = results.values()
    if kind == "sweep" and others:
        from krs.restore import compare

        return compare(results).told(measure, setting)
    if kind == "sweep":
        from krs.restore.telling import title_and_description

        return title_and_description(first, measure, setting)
    shown = [f"{name}: {_shown(result, kind)}" if others else _shown(result, kind) for name, result in results.items()]
    return _TITLES[kind], " ".join(shown)


def _shown(result: Any, kind: str) -> str:
    lines = [line for line in words(result, kind) if not line.startswith(_APART)]
    prose = [line for line in lines if not line.startswith("- ")]
    parts = [] if kind == "answers" else [line.removeprefix("- ") for line in lines if line not in prose]
    return " ".join([*prose, *([f"{'; '.join(parts)}."] if parts else [])])
