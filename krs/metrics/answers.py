"""What two models say to the same questions: the paper's behaviour test (section 4, Fig. 2)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from krs._typing import Axes, DataFrame, Tokenizer
from krs.errors import KrsError
from krs.generation.forward import device_of, logits_at
from krs.generation.greedy import greedy
from krs.metrics.bleu import REFUSALS, BleuKind, bleu, check_kind, distinct, is_refusal, signature
from krs.models.given import load_given
from krs.models.pair import check_pair
from krs.models.provenance import describe_model, now, versions
from krs.models.tokenizers import as_tokenizer, find_tokenizer
from krs.prompts import Ids, Prompt, decode, encode, next_token_batch

SIDES = ("target", "unrelated")
_FORMAT = 1
_ROWS = 8
_MEANS = ("bleu", "ceiling", "refusals", "refusals_vanilla", "distinct_2", "distinct_2_vanilla", "nll", "nll_vanilla")


@dataclass(frozen=True, repr=False)
class Answers:
    """What `answers` found.

    Attributes:
        frame: a row a question: `side` (target or unrelated), `question`, the two answers `vanilla` and `unlearned`,
            `bleu` (0 to 100), `ceiling` (the same BLEU of the vanilla answer against itself), and for each model
            whether it refused, its distinct 2-grams, and `nll`: nats a token that it gives the vanilla answer.
        token_ids: of the answers, `{model: [ids, …]}` in the frame's order.
        provenance: models, settings, versions, time.
    """

    frame: DataFrame
    token_ids: dict[str, list[Ids]]
    provenance: dict[str, Any]

    @property
    def table(self) -> DataFrame:
        """Means over questions, a row a side. Beside `bleu` stands its ceiling, and how the vanilla model fares."""
        means = self.frame.groupby("side", sort=False)[list(_MEANS)].mean()
        return means.assign(questions=self.frame.groupby("side", sort=False).size())

    def plot(self, ax: Axes | None = None) -> Axes:
        """This pair as one point of the paper's Fig. 2; see `krs.plots.plot_tradeoff` for several."""
        from krs.plots import plot_tradeoff

        return plot_tradeoff({"": [self]}, ax)

    def save(self, path: str | Path) -> None:
        """Write everything to one JSON file; `load_answers` reads it."""
        said = {
            "krs_answers": _FORMAT,
            "rows": self.frame.astype(object).where(self.frame.notna(), None).to_dict(orient="records"),
            "token_ids": self.token_ids,
            "provenance": self.provenance,
        }
        Path(path).write_text(json.dumps(said, ensure_ascii=False, indent=1), encoding="utf-8")

    def __repr__(self) -> str:
        shown = self.table.to_string(float_format=lambda x: f"{x:.2f}")
        return f"Answers ({self.provenance['bleu']})\n{shown}"

    def _repr_html_(self) -> str:
        return str(self.table.to_html(float_format=lambda x: f"{x:.2f}", border=0))


def load_answers(path: str | Path) -> Answers:
    """Read what `Answers.save` wrote; raises `KrsError` for anything else."""
    import pandas as pd

    try:
        said = json.loads(Path(path).read_text(encoding="utf-8"))
        if said["krs_answers"] != _FORMAT:
            raise KrsError(f"{str(path)!r} was written by another version of krs (format {said['krs_answers']})")
        ids = {model: [tuple(row) for row in rows] for model, rows in said["token_ids"].items()}
        frame = pd.DataFrame(said["rows"])
        floats = ["bleu", "ceiling", "distinct_2", "distinct_2_vanilla", "nll", "nll_vanilla"]
        return Answers(frame.astype(dict.fromkeys(floats, float)), ids, said["provenance"])
    except OSError as reason:
        raise KrsError(f"cannot read {str(path)!r}: {reason.strerror}") from None
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
        raise KrsError(
            f"{str(path)!r} does not hold answers: give a file that Answers.save or krs answers wrote"
        ) from None


def answers(
    vanilla: nn.Module | str | Path,
    unlearned: nn.Module | str | Path,
    target: Sequence[Prompt],
    unrelated: Sequence[Prompt] = (),
    *,
    tokenizer: Tokenizer | str | Path | None = None,
    n_tokens: int = 30,
    bleu: BleuKind = "sacrebleu",
    refusals: Sequence[str] = REFUSALS,
    reuse: Answers | None = None,
    progress: bool = True,
    device: str | torch.device = "auto",
    dtype: torch.dtype | str = "auto",
    device_map: Any = None,
) -> Answers:
    """Ask both models the same questions and compare their greedy answers.

    >>> import krs
    >>> vanilla, _ = krs.load("smollm2")
    >>> unlearned, _ = krs.load("smollm2")       # stands in for one that was unlearned
    >>> found = krs.metrics.answers(vanilla, unlearned, target=["The capital of France is"], n_tokens=3, progress=False)
    >>> round(float(found.table.bleu["target"])), int(found.table.questions["target"])
    (100, 1)

    Args:
        vanilla: as in `krs.sweep`.
        unlearned: as in `krs.sweep`.
        target: prompts about what was unlearned.
        unrelated: prompts about other things.
        tokenizer: or the name of a model that has it; looked for beside the models' checkpoints if not given.
        n_tokens: at most so many tokens an answer.
        bleu: `"sacrebleu"` or `"paper-code"`, see `krs.metrics.bleu.bleu`.
        refusals: regular expressions that make an answer a refusal.
        reuse: an earlier result of the same vanilla model and prompts, whose vanilla answers are taken over.
        device: where models given by name go, as in `krs.sweep`; `dtype` and `device_map` likewise.
        dtype: see `device`.
        device_map: see `device`.

    Raises `KrsError` before anything runs for a pair that does not belong together, and for bad prompts or settings.
    """
    check_kind(bleu)
    reader = as_tokenizer(tokenizer)
    given = {"vanilla": vanilla, "unlearned": unlearned}
    models = load_given(given, device=device, dtype=dtype, device_map=device_map)
    v, u = (body.model for body in check_pair(models[0][0], models[1][0]))
    reader = reader or models[0][1] or find_tokenizer(v) or models[1][1] or find_tokenizer(u)
    if reader is None:
        raise KrsError(
            "no tokenizer was found beside the models: pass tokenizer=, one that is loaded or the name of a model that "
            "has it"
        )
    asked = {side: list(given) for side, given in zip(SIDES, (target, unrelated), strict=True)}
    ids = {side: encode(given, reader) for side, given in asked.items() if given or side == "target"}
    prompts = tuple(p for rows in ids.values() for p in rows)
    provenance = {
        "vanilla": describe_model(vanilla, v),
        "unlearned": describe_model(unlearned, u),
        "prompts_sha256": hashlib.sha256(json.dumps(prompts).encode()).hexdigest(),
        "n_tokens": n_tokens,
        "bleu": signature(bleu),
        "refusals": list(refusals),
        "versions": versions(),
        "made": now(),
    }
    said = {
        "vanilla": _vanilla_answers(v, prompts, n_tokens, reuse, provenance, progress),
        "unlearned": greedy(u, prompts, n_tokens, progress=progress, doing="answers (unlearned)"),
    }
    texts = {name: [decode(a, reader, skip_special_tokens=True) for a in rows] for name, rows in said.items()}
    rows = [
        {"side": side, "question": _shown(prompt, reader), "vanilla": before, "unlearned": after}
        for (side, prompt), before, after in zip(
            ((side, p) for side in ids for p in asked[side]), texts["vanilla"], texts["unlearned"], strict=True
        )
    ]
    nll = {name: _nll(model, prompts, said["vanilla"]) for name, model in (("nll_vanilla", v), ("nll", u))}
    frame = _frame(rows, bleu, refusals).assign(**nll)
    return Answers(frame, {name: list(found) for name, found in said.items()}, provenance)


def _vanilla_answers(
    v: nn.Module, prompts: tuple[Ids, ...], n_tokens: int, reuse: Answers | None, ours: dict[str, Any], progress: bool
) -> tuple[Ids, ...]:
    if reuse is None:
        return greedy(v, prompts, n_tokens, progress=progress, doing="answers (vanilla)")
    theirs = reuse.provenance
    same = {
        "prompts": theirs["prompts_sha256"] == ours["prompts_sha256"],
        "n_tokens": theirs["n_tokens"] == n_tokens,
        "vanilla model": theirs["vanilla"]["weights_sample_sha256"] == ours["vanilla"]["weights_sample_sha256"],
    }
    if differing := [what for what, equal in same.items() if not equal]:
        raise KrsError(f"reuse= is of other answers: {' and '.join(differing)} differ. Leave it out")
    return tuple(reuse.token_ids["vanilla"])


def _frame(rows: list[dict[str, str]], kind: BleuKind, refusals: Sequence[str]) -> DataFrame:
    import pandas as pd

    def figures(row: dict[str, str]) -> dict[str, Any]:
        before, after = row["vanilla"], row["unlearned"]
        return {
            "bleu": bleu(before, after, kind),
            "ceiling": bleu(before, before, kind),
            "refusals": is_refusal(after, refusals),
            "refusals_vanilla": is_refusal(before, refusals),
            "distinct_2": distinct(after, 2),
            "distinct_2_vanilla": distinct(before, 2),
        }

    return pd.DataFrame([row | figures(row) for row in rows])


def _nll(model: nn.Module, prompts: tuple[Ids, ...], said: tuple[Ids, ...]) -> list[float]:
    """Mean negative log-likelihood a token, in nats, that a model gives each answer."""
    batch = next_token_batch(prompts, said)
    found: list[float] = []
    for start in range(0, len(batch), _ROWS):
        part, answer = batch.rows(start, start + _ROWS), said[start : start + _ROWS]
        logits = logits_at(model, part.inputs(device_of(model)), part.scored_index())
        for row, ids in zip(logits, answer, strict=True):
            scores = torch.log_softmax(row[: len(ids)].float(), dim=-1)
            found.append(float(-scores.gather(-1, torch.tensor(ids, device=scores.device)[:, None]).mean()))
    return found


def _shown(prompt: Any, tokenizer: Tokenizer) -> str:
    """A prompt as a table should show it: its text, or what the last message says."""
    if isinstance(prompt, str):
        return prompt
    if not isinstance(prompt, torch.Tensor) and isinstance(prompt[0], dict):
        return str(prompt[-1]["content"])
    return decode([int(t) for t in prompt], tokenizer)
