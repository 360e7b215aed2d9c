"""What two models said to the same questions, or how they went on with the same texts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from krs._typing import Axes, DataFrame
from krs.metrics import answers_file
from krs.metrics.answers_file import OF_TEXTS
from krs.notebook import as_html
from krs.prompts import Ids
from krs.wording import as_text, cut_off

MEANS = ("bleu", "ceiling", "refusals", "refusals_vanilla", "distinct_2", "distinct_2_vanilla", "nll", "nll_vanilla")
"""Columns of numbers that every result has."""


@dataclass(frozen=True, repr=False)
class Answers:
    """What `answers` found, or `text_completion`.

    Attributes:
        frame: a row a question: `side` (target or unrelated), `question`, the two answers `vanilla` and `unlearned`,
            `bleu` (0 to 100), `ceiling` (the same BLEU of the vanilla answer against itself), and for each model
            whether it refused, its distinct 2-grams, and `nll`: nats a token that it gives the vanilla answer. Of text
            completion, `question` is the text's beginning and the answers are continuations; beside them stand `text`
            (how it does go on), and of each model `bleu_text` against that and `nll_text`, nats a token that it gives
            that.
        token_ids: of the answers, `{model: [ids, …]}` in the frame's order.
        provenance: models, settings, versions, time.
    """

    frame: DataFrame
    token_ids: dict[str, list[Ids]]
    provenance: dict[str, Any]

    @property
    def complete(self) -> bool:
        """Whether both models have answered all (not so for the `partial` of a call that was interrupted)."""
        return len(self.token_ids.get("unlearned", ())) == len(self.frame)

    @property
    def table(self) -> DataFrame:
        """Means over questions, a row a side. Beside `bleu` stands its ceiling, and how the vanilla model fares."""
        means = self.frame.groupby("side", sort=False)[
            [name for name in (*MEANS, *OF_TEXTS) if name in self.frame]
        ].mean()
        return means.assign(questions=self.frame.groupby("side", sort=False).size())

    @property
    def shown(self) -> DataFrame:
        """The frame's texts for a reader: answers that were cut at the most tokens end in an ellipsis."""
        ends = frozenset(self.provenance.get("ends", ()))
        told = self.frame[[name for name in ("side", "question", "text") if name in self.frame]].copy()
        for model in ("vanilla", "unlearned"):
            ids = self.token_ids.get(model, [])
            texts = self.frame[model].tolist()
            told[model] = [cut_off(t, i, ends) for t, i in zip(texts, ids, strict=False)] + texts[len(ids) :]
        return told

    @property
    def notes(self) -> list[str]:
        """What about the questions or the models is most likely not meant."""
        return list(self.provenance.get("notes", []))

    def plot(self, ax: Axes | None = None) -> Axes:
        """This pair as one point of the paper's Fig. 2; see `krs.plots.plot_tradeoff` for several."""
        from krs.plots import plot_tradeoff

        return plot_tradeoff({"": [self]}, ax)

    def save(self, path: str | Path) -> None:
        """Write everything to one JSON file; `load_answers` reads it."""
        answers_file.save(self, path)

    def __repr__(self) -> str:
        shown = as_text(self.table, 2)
        return "\n".join([self._headline(), shown, *(f"note: {n}" for n in self.notes)])

    def _repr_html_(self) -> str:
        return as_html(self._headline(), self.table, (f"note: {n}" for n in self.notes), number="z.2f")

    def _headline(self) -> str:
        return f"Answers ({self.provenance['bleu']})"
