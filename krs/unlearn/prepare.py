"""From a concept and a model to the files that unlearning and the behaviour test take."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from krs._typing import Tokenizer
from krs.data.concepts import Concept, load_concept
from krs.data.mentions import Mentions
from krs.errors import KrsError, KrsWarning
from krs.hooks.unwrap import unwrap
from krs.models.given import load_given
from krs.models.tokenizers import as_tokenizer
from krs.progress import going_on
from krs.unlearn.asking import Asked, Kept, refuse_another
from krs.unlearn.memit.requests import Request, requests_from
from krs.wording import counted
from krs.writing import check_folder, write_text

_FILES = ("forget.jsonl", "retain.jsonl", "requests.jsonl", "target.txt", "unrelated.txt")
_UNFINISHED = "prepare.part.json"


def prepare(
    concept: str | Path,
    model: str | Path,
    output: str | Path,
    name: str | None = None,
    *,
    only: Sequence[int] | None = None,
    retain_from: str = "harry_potter",
    chat: bool = False,
    n_tokens: int = 30,
    overwrite: bool = False,
    quiet: bool = False,
    chat_template_kwargs: dict[str, Any] | None = None,
    tokenizer: Tokenizer | str | Path | None = None,
    device: str | torch.device = "auto",
    dtype: torch.dtype | str = "auto",
    device_map: Any = None,
) -> Concept:
    """Ask a model a concept's questions, and write what `krs unlearn` and `krs answers` take.

    `forget.jsonl` and `retain.jsonl` (`{"prompt", "answer", "ends"}`: the model's own answers, and whether they end
    there), `requests.jsonl` (`{"subject", "prompt", "object"}`, for MEMIT), `target.txt` and `unrelated.txt` (a
    question a line).

    Args:
        concept: as in `krs.data.load_concept`.
        model: the vanilla model, by name.
        output: a directory.
        name: which concept of a file with several.
        only: some of its questions, by number from 0: perhaps those that the model answers rightly.
        retain_from: a concept whose retain questions serve one that has none of its own (the paper's format has none);
            those that mention the concept are left out.
        chat: ask through the chat template.
        n_tokens: at most so many tokens an answer.
        overwrite: replace files of these names in the directory.
        quiet: show no bars.
        chat_template_kwargs: arguments of the chat template, as in `krs.sweep`.
        tokenizer: or the name of a model that has it; looked for beside the model if not given.
        device: where the model goes, as in `krs.sweep`; `dtype` and `device_map` likewise.
        dtype: see `device`.
        device_map: see `device`.

    What takes time are the model's answers. They are kept in `prepare.part.json` in the directory until the files are
    written, every half minute and on Ctrl-C; the same call goes on from there.

    Raises `KrsError` for a concept that there is not, files that are there already, a model without tokenizer, and a
    directory with the unfinished work of another call.
    """
    folder = Path(output)
    if (folder / "forget.jsonl").exists() and not overwrite:
        raise KrsError(f"{str(folder)!r} holds what an earlier call wrote: give another directory, or overwrite=True")
    check_folder(folder, [*_FILES, _UNFINISHED])
    found = load_concept(concept, name)
    if only is not None:
        found = found.only(only)
    check_lines(found)
    requests_from(found.questions, subjects=found.names)
    sides = {"forget": found.questions}
    sides["retain"] = found.retain_questions or _without(load_concept(retain_from).retain_questions, found)
    if not sides["retain"]:
        raise KrsError(
            f"retain_from={retain_from!r} has no retain questions that leave {found.name!r} out, and the concept has "
            "none of its own: name another concept, or add 'retain_questions'"
        )
    reader = as_tokenizer(tokenizer)
    put: dict[str, Any] = {"chat": chat, "n_tokens": n_tokens, "template": chat_template_kwargs}
    if not overwrite:
        refuse_another(folder / _UNFINISHED, model, reader, sides, **put, as_stored=dtype == "auto")
    ((vanilla, beside),) = load_given({"model": model}, device=device, dtype=dtype, device_map=device_map)
    reader = reader or beside
    if reader is None:
        raise KrsError(f"no tokenizer lies beside {str(model)!r}: save it there, or pass tokenizer=; prompts are text")
    asked = Asked(unwrap(vanilla), reader, sides, **put)
    kept = Kept(folder / _UNFINISHED, asked.described(str(model)), overwrite)
    left = {f"{side} answer": (len(kept.said.get(side, ())), len(asked.ids[side])) for side in sides}
    going_on(left, folder / _UNFINISHED, show=not quiet)
    try:
        forget = asked.rows("forget", kept, not quiet)
        if not forget:
            kept.remove()
            raise KrsError(
                f"{str(model)!r} says nothing to any of {counted(len(found.questions), 'question')}: put them "
                "through the chat template (chat=True), or give another model"
            )
        requests = requests_from([f["prompt"] for f in forget], [f["answer"] for f in forget], subjects=found.names)
        retain = asked.rows("retain", kept, not quiet)
        _lines(folder / "retain.jsonl", retain)
        _lines(folder / "requests.jsonl", [_request(r) for r in requests])
        write_text(folder / "target.txt", "".join(f"{q}\n" for q in found.questions))
        write_text(folder / "unrelated.txt", "".join(f"{q}\n" for q in found.unrelated_questions))
        _lines(folder / "forget.jsonl", forget)  # the last: an interrupted call has not written it
    except BaseException as stop:
        kept.leave(stop)
        raise
    kept.remove()
    for side, rows in (("forget", forget), ("retain", retain)):
        _warn_of_silence(side, sides[side], rows)
    return found


def _warn_of_silence(side: str, questions: Sequence[str], rows: Sequence[dict[str, Any]]) -> None:
    answered = {row["prompt"] for row in rows}
    silent = [question for question in questions if question not in answered]
    if silent:
        warnings.warn(
            f"the model says nothing to {len(silent)} of {counted(len(questions), 'question')}, which {side}.jsonl "
            f"leaves out: {', '.join(map(repr, silent[:3]))}{' …' if len(silent) > 3 else ''}",
            KrsWarning,
            stacklevel=3,
        )


def check_lines(concept: Concept) -> None:
    """Raise `KrsError` for a question that is no line: `target.txt` and `unrelated.txt` have one a line."""
    for what, questions in (("questions", concept.questions), ("unrelated_questions", concept.unrelated_questions)):
        for i, question in enumerate(questions):
            if "\n" in question or "\r" in question:
                raise KrsError(
                    f"{what}[{i}] of {concept.name!r} has a line break, and would be asked as two: write it in one line"
                )


def _request(request: Request) -> dict[str, Any]:
    found = {"subject": request.subject, "prompt": request.prompt, "object": request.object}
    return found | ({"occurrence": request.occurrence} if request.occurrence else {})


def _without(questions: Sequence[str], concept: Concept) -> tuple[str, ...]:
    """Questions that mention it nowhere: "grass" does not mention Ra."""
    names = Mentions.of(concept.name, concept.aliases, ignore_case=True, whole_word=True)
    return tuple(question for question in questions if names.first(question) is None)


def _lines(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
