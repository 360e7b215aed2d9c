"""A model's own answers to several sets of questions, kept while they are given."""

from __future__ import annotations

import hashlib
import json
import time
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from krs._typing import Tokenizer
from krs.data.concepts import as_chat
from krs.errors import KrsError
from krs.generation.fits import check_fits
from krs.generation.greedy import eos_ids, greedy, pad_ids
from krs.generation.pieces import INCOMPLETE
from krs.metrics.answers_file import what_differs
from krs.models.provenance import NUMBERS, describe_model, versions
from krs.models.unloaded import unloaded
from krs.prompts import Ids, check_template_arguments, decode, encode, with_template_arguments
from krs.unlearn.checkpoints import read_json
from krs.writing import write_text

_SAVE_EVERY = 30.0


class Asked:
    """Questions as prompts of a model.

    Args:
        model: that answers.
        tokenizer: its tokenizer.
        sides: the questions, by what they are for.
        chat: put them through the chat template.
        n_tokens: at most so many tokens an answer.
        template: arguments of the chat template.

    Raises `KrsError` for prompts that do not fit.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Tokenizer,
        sides: Mapping[str, Sequence[str]],
        chat: bool,
        n_tokens: int,
        template: dict[str, Any] | None,
    ) -> None:
        self.model, self.tokenizer, self.sides, self.n_tokens = model, tokenizer, sides, n_tokens
        self.ends = eos_ids(model)
        reader = with_template_arguments(tokenizer, check_template_arguments(template, chat))
        self.ids: dict[str, tuple[Ids, ...]] = {}
        for side, questions in sides.items():
            prompts: Any = as_chat(tuple(questions)) if chat else list(questions)
            self.ids[side] = encode(prompts, reader, pads=pad_ids(model), ends=self.ends) if questions else ()
            check_fits(self.ids[side], n_tokens, model)

    def described(self, given: str) -> dict[str, Any]:
        """What answers depend on: model, prompts, length, ends and versions."""
        return {"vanilla": describe_model(given, self.model), **self.put()}

    def put(self) -> dict[str, Any]:
        """The same without the model."""
        return {
            "prompts_sha256": hashlib.sha256(json.dumps(self.ids).encode()).hexdigest(),
            "n_tokens": self.n_tokens,
            "ends": sorted(self.ends),
            "numbers": NUMBERS,
            "versions": versions(),
        }

    def rows(self, side: str, kept: Kept, progress: bool) -> list[dict[str, Any]]:
        """The answers that say something: `prompt`, `answer`, and whether it `ends` there."""
        options: dict[str, Any] = {"done": kept.said.get(side, ()), "kept": partial(kept.note, side)}
        said = greedy(self.model, self.ids[side], self.n_tokens, progress=progress, **options)
        rows = zip(self.sides[side], map(self._text, said), said, strict=True)
        return [{"prompt": q, "answer": a, "ends": ids[-1] in self.ends} for q, a, ids in rows if a.strip()]

    def _text(self, ids: Ids) -> str:
        """An answer; of a character whose bytes were cut off nothing, for it would be learnt as another one."""
        text = decode(ids, self.tokenizer, skip_special_tokens=True)
        return text if ids[-1] in self.ends else text.rstrip(INCOMPLETE)


def refuse_another(
    file: Path,
    model: Any,
    tokenizer: Tokenizer | None,
    sides: Mapping[str, Sequence[str]],
    *,
    chat: bool,
    n_tokens: int,
    template: dict[str, Any] | None,
    as_stored: bool,
) -> None:
    """Raise `KrsError` where a file is of another call, as far as that is known before the model is loaded."""
    known = read_json(file).get("provenance")
    if not isinstance(known, dict) or "identity" not in known.get("vanilla", {}):
        return
    models = unloaded({"vanilla": model}, tokenizer)
    if models is None or models.tokenizer is None:
        return
    asked = Asked(models.models["vanilla"], models.tokenizer, sides, chat, n_tokens, template)
    Kept(file, asked.put() | {"ends": known.get("ends")} | models.described(known, as_stored), False)


class Kept:
    """Answers so far in a file, which the same call goes on from, and no other.

    Args:
        file: where.
        described: what the answers depend on.
        anew: what another call has left there is overwritten.

    Attributes:
        said: token ids of the answers so far, by side.
    """

    def __init__(self, file: Path, described: dict[str, Any], anew: bool) -> None:
        self.file, self.described, self.saved = file, described, time.monotonic()
        self.said = self._earlier(anew)

    def _earlier(self, anew: bool) -> dict[str, tuple[Ids, ...]]:
        try:
            found = json.loads(self.file.read_text(encoding="utf-8"))
            said = {side: tuple(map(tuple, rows)) for side, rows in found["token_ids"].items()}
            theirs = found["provenance"]
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            other = ["all of it: this is no such file"]
        else:
            other = list(what_differs(theirs, self.described, ("vanilla",), same_versions=True))
        if other and not anew:
            raise KrsError(
                f"{str(self.file)!r} is the unfinished work of another call. What differs: {'; '.join(other)}. Give "
                "another directory, or overwrite=True"
            )
        return {} if other else said

    def note(self, side: str, found: tuple[Ids, ...]) -> None:
        """A batch was answered."""
        self.said[side] = found
        if time.monotonic() - self.saved > _SAVE_EVERY:
            try:
                self._save()
            except KrsError as reason:
                warnings.warn(f"the questions go on, but what is answered is not kept: {reason}", stacklevel=4)
            self.saved = time.monotonic()

    def _save(self) -> None:
        write_text(self.file, json.dumps({"provenance": self.described, "token_ids": self.said}))

    def leave(self, stop: BaseException) -> None:
        """On the way out of `stop`, save the answers so far, and say where they are."""
        if not (many := sum(map(len, self.said.values()))):
            return
        stop.partial = self.said  # type: ignore[attr-defined]
        try:
            self._save()
            stop.add_note(f"{many} answers so far are in {str(self.file)!r}; the same call goes on from there")
        except KrsError as reason:
            stop.add_note(f"{many} answers so far are in the exception's attribute `partial` alone: {reason}")

    def remove(self) -> None:
        """They are not needed any more."""
        self.said.clear()
        self.file.unlink(missing_ok=True)
