"""Training that stops where instruments read what was asked for, so that methods are compared at the same strength."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from krs.errors import KrsError
from krs.files import read_prompts

STOP = "stop_when"
"""In a method's settings or a strength's: `"nll > 2"`, of any instruments that `krs.dissect` has."""


def check_stop(name: str, given: Any) -> None:
    """Raise `KrsError` for a condition that cannot be looked at while this method trains."""
    from krs.instruments import instrument
    from krs.unlearn.methods import Edit, method
    from krs.unlearn.watching import condition

    if issubclass(method(name), Edit):
        raise KrsError(f"{name} does not train, so there is nothing to stop: leave {STOP} out")
    if not isinstance(given, str):
        raise KrsError(f"{STOP}: {given!r}: give a comparison, such as nll > 2")
    for asked, _, _ in condition(given).parts:
        if instrument(asked).needs:
            raise KrsError(f"{STOP}: {asked} needs {instrument(asked).needs[0]}, which is not at hand in training")


def until(condition: str, vanilla: Any, tokenizer: Any, answers: Path, n_tokens: int, chat: bool) -> dict[str, Any]:
    """What `krs.unlearn.run` takes: the condition's instruments, read after each step of the answers in a file.

    Answers end where they were cut: the model is not asked whether it would have ended there.
    """
    from krs.instruments import watch
    from krs.unlearn.watching import condition as parsed

    rows = read_prompts(answers)  # whose lines end at line feeds alone, whatever separators an answer has
    facts = [(row["prompt"], row["answer"]) for row in rows]
    names = [name for name, _, _ in parsed(condition).parts]
    looks = watch(vanilla, tokenizer, facts, instruments=names, every=1, chat=chat, n_tokens=n_tokens)
    return {"watch": looks, STOP: condition}
