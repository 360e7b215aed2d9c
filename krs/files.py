"""What a user hands to the command line: files of prompts and texts, settings, names of types."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from krs.errors import KrsError
from krs.names import DTYPES


def questions(path: Path, chat: bool) -> list[Any]:
    """Prompts of a file, each text as a user's message if `chat`."""
    found = read_prompts(path)
    if any(isinstance(p, dict) and "role" not in p for p in found):
        raise KrsError(f"{str(path)!r} holds more than questions: give a file of these alone, a question a line")
    return [[{"role": "user", "content": p}] if chat and isinstance(p, str) else p for p in found]


def dtype(name: str) -> Any:
    """A torch dtype by name."""
    if name not in ("auto", *DTYPES):
        raise KrsError(f"--dtype {name!r}: give a torch dtype such as bfloat16 or float32, or auto")
    if name == "auto":
        return name
    import torch

    return getattr(torch, name)


def texts(path: Path, chat: bool = False) -> list[Any]:
    """Forget, retain or other texts of a file: strings, pairs, or paragraphs as `krs corpus` writes them.

    With `chat` the prompt of a pair becomes a user's message.
    """
    found = []
    for text in read_prompts(path):
        prompt = text.get("prompt") if isinstance(text, dict) else None
        if chat and isinstance(prompt, str):
            text |= {"prompt": [{"role": "user", "content": prompt}]}
        is_paragraph = isinstance(text, dict) and prompt is None and isinstance(text.get("text"), str)
        found.append(text["text"] if is_paragraph else text)
    return found


def setting(given: str) -> tuple[str, Any]:
    """`name=value`, the value as JSON if it is that, else as text."""
    name, sign, value = given.partition("=")
    if not sign:
        raise KrsError(f"--set {given!r}: write it as name=value, such as learning_rate=1e-5")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def read_prompts(path: Path) -> list[Any]:
    """Prompts of a file: a line each, or JSON (a list), or JSON lines."""
    if not path.is_file():
        raise KrsError(f"no such file: {str(path)!r}")
    text = path.read_text(encoding="utf-8")
    try:
        if path.suffix == ".json":
            found = json.loads(text)
        elif path.suffix == ".jsonl":
            found = [json.loads(line) for line in text.split("\n") if line.strip()]
        else:
            found = [line for line in text.splitlines() if line.strip()]
    except json.JSONDecodeError as reason:
        raise KrsError(f"{str(path)!r} is not valid JSON: {reason}") from None
    if not isinstance(found, list):
        raise KrsError(f"{str(path)!r} holds a {type(found).__name__}: it has to be a list of prompts")
    if not found:
        raise KrsError(f"{str(path)!r} holds nothing: give at least one line")
    return found


_OPTIONS = {
    "overwrite=True": "--overwrite",
    "output_dir=": "--output ",
    "krs.load('smollm2')": "'smollm2'",
    "retain=": "--retain",
    "corpus=": "--corpus",
    "text_field=": "--text-field",
    "chat=True": "--chat",
    "reuse=": "--reuse",
    "device=": "--device ",
    "device_map=": "--device-map ",
    "dtype=": "--dtype ",
    "offload=": "--offload ",
    "tokenizer=": "--tokenizer ",
    "answers=": "--answers",
    "subjects=": "--set subjects=",
    "ridge=": "--set ridge=",
    "min_tokens=": "--set min_tokens=",
}


def in_options(message: str) -> str:
    """A message as the shell needs it: keyword arguments by the names of their options.

    >>> in_options("grad_diff needs a retain set: pass retain=, texts that the model is to keep")
    'grad_diff needs a retain set: pass --retain, texts that the model is to keep'
    """
    for keyword, option in _OPTIONS.items():
        message = re.sub(rf"(?<![\w-]){re.escape(keyword)}", option, message)
    return message
