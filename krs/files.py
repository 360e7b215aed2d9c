"""What a user hands to the command line: files of prompts and texts, settings, names of types."""

from __future__ import annotations

import codecs
import json
import re
from pathlib import Path
from typing import Any

from krs.errors import KrsError
from krs.names import DTYPES
from krs.wording import kind


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


def setting(given: str, option: str = "--set", example: str = "learning_rate=1e-5") -> tuple[str, Any]:
    """`name=value`, the value as JSON if it is that, else as text."""
    name, sign, value = given.partition("=")
    if not sign or not name:
        raise KrsError(f"{option} {given!r}: write it as name=value, such as {example}")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def positions(given: str | None) -> str | list[int] | None:
    """Positions as an option has them: a word, or numbers with commas between.

    >>> positions("0,-1"), positions("last_prompt")
    ([0, -1], 'last_prompt')
    """
    if given is None or not re.fullmatch(r"\s*-?\d+(\s*,\s*-?\d+)*\s*", given):
        return given
    return [int(n) for n in given.split(",")]


def numbers(given: str, option: str) -> list[int]:
    """Numbers with commas between.

    >>> numbers("0,3, 4", "--only")
    [0, 3, 4]

    Raises `KrsError` for anything else.
    """
    if not re.fullmatch(r"\s*\d+(\s*,\s*\d+)*\s*", given):
        raise KrsError(f"{option} {given!r}: give numbers with commas between, such as 0,3,4")
    return [int(n) for n in given.split(",")]


_WINDOWS = "5 or centred:5, sliding:4, each, from_layer_on, up_to_layer, last:3, or layers such as 7-9,17-19"


def windows(given: str) -> tuple[str, tuple[Any, ...]]:
    """Windows as an option has them: the function of `krs.windows` and what it gets.

    >>> windows("5"), windows("sliding:4"), windows("each"), windows("7-9,17")
    (('centred', (5,)), ('sliding', (4,)), ('each', ()), ('of', ([[7, 8, 9], [17]],)))

    Raises `KrsError` for anything else.
    """
    name, _, size = given.strip().partition(":")
    if name in ("each", "from_layer_on", "up_to_layer") and not size:
        return name, ()
    if name.isdigit() and "," not in given and not size:
        name, size = "centred", name
    if name in ("centred", "sliding", "last") and size.isdigit() and int(size) > 0:
        if name == "centred" and int(size) % 2 == 0:
            raise KrsError(
                f"--window {given}: a centred window is as wide on either side, so its size is odd: give "
                f"{int(size) + 1}, or sliding:{size}"
            )
        return name, (int(size),)
    return "of", ([_run(part, given) for part in given.split(",")],)


def _run(part: str, given: str) -> list[int]:
    """The layers of `7-9`, or of `7`."""
    first, dash, last = part.strip().partition("-")
    if not first.isdigit() or (dash and not (last.isdigit() and int(first) <= int(last))):
        raise KrsError(f"--window {given!r}: give {_WINDOWS}")
    return list(range(int(first), int(last or first) + 1))


def template_arguments(given: list[str] | None) -> dict[str, Any] | None:
    """`name=value` arguments of the chat template, `None` for none."""
    pairs = [setting(one, "--template-arg", "enable_thinking=false") for one in given or []]
    return dict(pairs) if pairs else None


def read_prompts(path: Path) -> list[Any]:
    """Prompts of a file: a line each, or JSON (a list), or JSON lines.

    Lines end at line feeds and carriage returns and nowhere else, so a prompt may hold other separators (U+2028, a
    form feed). Raises `KrsError` for what is no text, no JSON, or holds nothing.
    """
    text = read_text(path)
    suffix = path.suffix.lower()
    if suffix == ".json":
        found = _parsed(text, path, 1)
    else:
        lines = [(i, line) for i, line in enumerate(re.split(r"\r\n|\r|\n", text), 1) if line.strip()]
        found = [_parsed(line, path, i) for i, line in lines] if suffix == ".jsonl" else [line for _, line in lines]
    if not isinstance(found, list):
        raise KrsError(f"{str(path)!r} holds {kind(found)}: it has to be a list of prompts")
    if not found:
        raise KrsError(f"{str(path)!r} holds nothing: give at least one line")
    return found


_MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def read_text(path: Path) -> str:
    """What a text file holds: UTF-8, or UTF-16 and UTF-32 that begin with a byte-order mark, which is left out.

    Raises `KrsError` for a file that there is not, and for bytes that are no text in these encodings.
    """
    if not path.is_file():
        raise KrsError(
            f"{str(path)!r} is a directory: give a file" if path.is_dir() else f"no such file: {str(path)!r}"
        )
    try:
        data = path.read_bytes()
    except OSError as reason:
        raise KrsError(f"cannot read {str(path)!r}: {reason.strerror}") from None
    mark, encoding = next(((m, e) for m, e in _MARKS.items() if data.startswith(m)), (b"", "utf-8"))
    try:
        text = (data[len(mark) :] if encoding == "utf-8" else data).decode(encoding)
    except UnicodeDecodeError as reason:
        line = data.count(b"\n", 0, reason.start) + 1
        raise KrsError(
            f"{str(path)!r} is not {encoding.upper()} text (byte 0x{data[reason.start]:02x} in line {line}): "
            "save it as UTF-8"
        ) from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise KrsError(
            f"{str(path)!r} has a NUL byte in line {line}, so it is no UTF-8 text (UTF-16 without a mark, or no "
            "text at all): save it as UTF-8"
        )
    return text


def _parsed(text: str, path: Path, first: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as reason:
        where = f"line {first + reason.lineno - 1}, column {reason.colno}"
        raise KrsError(f"{str(path)!r} is not valid JSON: {reason.msg} in {where}") from None


_PHRASES = {
    "krs.sweep(…, measures=[…])": "krs sweep --measure",
    "krs.data.as_chat(questions), chat=True": "--chat",
    "save(path, overwrite=True)": "--overwrite",
    "overwrite=True": "--overwrite",
    "chat=True": "--chat",
    "where=[(layer, unit)]": "--at LAYER:UNIT",
    "krs.load('smollm2')": "'smollm2'",
    "checkpoint=": "",
    "tokenizer=AutoTokenizer.from_pretrained(…)": "--tokenizer DIR",
    " (AutoTokenizer.from_pretrained(…, use_fast=True))": "",
    "krs.load(name, dtype=torch.bfloat16), or ": "",
    "say which with concept=": "say which with --name",
    "texts= (--texts)": "--texts",
    "windows=krs.windows.of([[…]]), layers=[…] or .at(…)": "--window 7-9,17",
    "name that one (family='llama'); else describe it with krs.hooks.register_family(krs.hooks.Family(…))": (
        "say so in Python, with family=; else install a package that describes it (entry points of krs.families)"
    ),
    "give None (all), ": "leave it out for all, or give ",
    "a list of indices, or a list of indices for each prompt": "or indices such as 0,-1",
    "give None for all positions": "leave it out for all positions",
    "positions= as lists of indices": "--positions by numbers such as 0,-1",
    " (merge_and_unload())": "",
    " (model.merge_and_unload())": "",
}
_FORMS = {
    r"sides=\{'?([^':]*)'?: \[…\]\}": r"--side \1=FILE",
    r"(?:krs\.hooks\.)?ActivationPoint\([^()]*\)(?:\.units\(…\))?": "krs.hooks.ActivationPoint in Python",
}
"""What has no keyword argument's form, as patterns."""
_OPTIONS = {
    "answers": "--answers",
    "bleu": "--bleu",
    "budget": "--budget",
    "chat_template_kwargs": "--template-arg",
    "corpus": "--corpus",
    "count": "--count",
    "device": "--device",
    "device_map": "--device-map",
    "direction": "--direction",
    "dtype": "--dtype",
    "engine": "--engine",
    "forget": "--forget",
    "measures": "--measure",
    "memory": "--memory",
    "models": "--models",
    "n_tokens": "--n-tokens",
    "offload": "--offload",
    "only": "--only",
    "output_dir": "--output",
    "points": "--points",
    "norm": "--norm",
    "positions": "--positions",
    "prompts": "--prompts",
    "retain": "--retain",
    "reuse": "--reuse",
    "scoring": "--scoring",
    "setting": "--setting",
    "settings": "--settings",
    "subjects": "--subjects",
    "target": "--target",
    "text_field": "--text-field",
    "tokenizer": "--tokenizer",
    "top": "--top",
    "unrelated": "--unrelated",
    "vocabulary": "--vocabulary",
    "words": "--words",
    "windows": "--window",
    **{name: f"--set {name}=" for name in ("parameters", "precision", "ridge", "min_tokens")},
}
"""Keyword arguments by the options that stand for them."""


def in_options(message: str, command: str = "") -> str:
    """A message as the shell needs it: keyword arguments by the names of their options (`--set` of `krs unlearn`).

    >>> in_options("grad_diff needs a retain set: pass retain=, texts that the model is to keep")
    'grad_diff needs a retain set: pass --retain, texts that the model is to keep'
    >>> in_options("sweep again with measures=['kl', 'top1'], or positions=[0, -1]")
    'sweep again with --measure kl --measure top1, or --positions 0,-1'
    """
    for phrase, said in _PHRASES.items():
        message = message.replace(phrase, said)
    for form, said in _FORMS.items():
        message = re.sub(form, said, message)

    def several(found: re.Match[str]) -> str:
        name, values = found[1], [value.strip().strip("'") for value in found[2].split(",")]
        said = _OPTIONS[name]
        if said.endswith("="):  # its values are JSON
            return found[0]
        return f"{said} {','.join(values)}" if name == "positions" else " ".join(f"{said} {value}" for value in values)

    message = re.sub(rf"(?<![\w.-])({'|'.join(_OPTIONS)})=\[([^\[\]]+)\]", several, message)

    def option(found: re.Match[str]) -> str:
        name, alone = found[1], found[2] is not None
        said = f"--set {name}=" if (command, name) == ("unlearn", "subjects") else _OPTIONS[name]
        return said if said.endswith("=") or alone else f"{said} "

    return re.sub(rf"(?<![\w.-])({'|'.join(_OPTIONS)})=((?=[\s,.;:)]|$))?", option, message)
