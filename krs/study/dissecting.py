"""The step that asks whether an unlearned model still knows: `dissect`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import Field

from krs import files
from krs.errors import KrsError
from krs.study.manifest import digest_of
from krs.study.measuring import Measuring
from krs.study.spec import Fault, Part, Spec
from krs.study.step import Work, register
from krs.writing import write_text

CHEAP = ["nll", "nll_tail", "recall", "prefix", "logit_lens", "state_drop", "quantise_4", "relearn"]


class DissectOptions(Part):
    """As the arguments of `krs.dissect`; there is no time limit, for a result must not depend on the machine's speed.

    `questions` are asked of the concept's, all of them if not given; the vanilla model's own answers are the right
    ones.
    """

    instruments: list[str] = Field(default=CHEAP, min_length=1)
    nulls: bool = True
    n_tokens: int = Field(default=64, gt=0)
    questions: int | None = Field(default=None, gt=0)
    seed: int = 0


@register("dissect")
class DissectStep(Measuring):
    """What instruments read, and their verdict."""

    options = DissectOptions

    def check(self, spec: Spec, options: Any) -> Iterator[Fault]:
        """Names of instruments, and what instruments cannot be told."""
        from krs.instruments import instrument

        for i, name in enumerate(options.instruments):
            try:
                if "retain" in instrument(name).needs:
                    yield ("instruments", i), f"{name} needs a retain model, which a study has none of: leave it out"
            except KrsError as reason:
                yield ("instruments", i), str(reason)
        if spec.chat_template_kwargs:
            yield (), "instruments take no arguments of the chat template: leave chat_template_kwargs or dissect out"

    def run(self, work: Work) -> str:
        """Write report.html, report.json and evidence.csv; readings are kept as they are made."""
        import krs

        place, options = work.upstream["prepare"], work.options
        others = place / "unrelated.txt"
        found = krs.dissect(
            work.cell.vanilla,
            work.unlearned,
            files.read_prompts(place / "target.txt")[: options.questions],
            unrelated=files.read_prompts(others) if others.read_text(encoding="utf-8").strip() else (),
            budget=None,
            only=options.instruments,
            nulls=options.nulls,
            chat=work.spec.chat,
            n_tokens=options.n_tokens,
            seed=options.seed,
            output_dir=work.folder,
        )
        table = found.evidence.assign(verdict=found.verdict.word).reset_index()
        write_text(work.folder / "evidence.csv", table.to_csv(index=False))
        told = {
            name: [reading.values.tolist(), {null: v.tolist() for null, v in reading.nulls.items()}]
            for name, reading in found.readings.items()
        }
        return digest_of([told, str(found.verdict)])
