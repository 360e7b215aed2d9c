"""From a concept and a model to the files that unlearning and the behaviour test take."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from krs._typing import Tokenizer
from krs.data.concepts import Concept, as_chat, load_concept
from krs.errors import KrsError
from krs.generation.greedy import eos_ids, generate
from krs.models.given import load_given
from krs.models.tokenizers import as_tokenizer
from krs.unlearn.memit.requests import requests_from


def prepare(
    concept: str | Path,
    model: str | Path,
    output: str | Path,
    name: str | None = None,
    *,
    retain_from: str = "harry_potter",
    chat: bool = False,
    n_tokens: int = 30,
    overwrite: bool = False,
    quiet: bool = False,
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
        retain_from: a concept whose retain questions serve one that has none of its own (the paper's format has none);
            those that mention the concept are left out.
        chat: ask through the chat template.
        n_tokens: at most so many tokens an answer.
        overwrite: replace files of these names in the directory.
        quiet: show no bars.
        tokenizer: or the name of a model that has it; looked for beside the model if not given.
        device: where the model goes, as in `krs.sweep`; `dtype` and `device_map` likewise.
        dtype: see `device`.
        device_map: see `device`.

    Raises `KrsError` for a concept that there is not, files that are there already, and a model without tokenizer.
    """
    folder = Path(output)
    if (folder / "forget.jsonl").exists() and not overwrite:
        raise KrsError(f"{str(folder)!r} holds what an earlier call wrote: give another directory, or overwrite=True")
    found = load_concept(concept, name)
    others = found.retain_questions or _without(load_concept(retain_from).retain_questions, found)
    reader = as_tokenizer(tokenizer)
    ((vanilla, beside),) = load_given({"model": model}, device=device, dtype=dtype, device_map=device_map)
    reader = reader or beside
    if reader is None:
        raise KrsError(f"no tokenizer lies beside {str(model)!r}: save it there, or pass tokenizer=; prompts are text")

    ends = eos_ids(vanilla)

    def asked(questions: Sequence[str]) -> list[dict[str, Any]]:
        prompts: Any = as_chat(tuple(questions)) if chat else list(questions)
        said = generate(vanilla, None, prompts, tokenizer=reader, n_tokens=n_tokens, progress=not quiet)
        rows = zip(questions, said, said.token_ids, strict=True)
        return [{"prompt": q, "answer": a, "ends": ids[-1] in ends} for q, a, ids in rows if a.strip()]

    forget = asked(found.questions)
    requests = requests_from([f["prompt"] for f in forget], [f["answer"] for f in forget], subjects=found.names)
    folder.mkdir(parents=True, exist_ok=True)
    _lines(folder / "forget.jsonl", forget)
    _lines(folder / "retain.jsonl", asked(others))
    _lines(
        folder / "requests.jsonl", [{"subject": r.subject, "prompt": r.prompt, "object": r.object} for r in requests]
    )
    (folder / "target.txt").write_text("".join(f"{q}\n" for q in found.questions), encoding="utf-8")
    (folder / "unrelated.txt").write_text("".join(f"{q}\n" for q in found.unrelated_questions), encoding="utf-8")
    return found


def _without(questions: Sequence[str], concept: Concept) -> tuple[str, ...]:
    return tuple(q for q in questions if not any(name.lower() in q.lower() for name in concept.names))


def _lines(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
