"""The step that asks whether an unlearned model still knows: `dissect`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import Field

from krs import files
from krs.errors import KrsError
from krs.study.checkpoints import size_of
from krs.study.grid import Cell
from krs.study.manifest import digest_of
from krs.study.measuring import Measuring
from krs.study.spec import Fault, Part, Spec
from krs.study.step import Work, register
from krs.study.training import dtype_of
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
    reads_retain = True

    def check(self, spec: Spec, options: Any) -> Iterator[Fault]:
        """Names of instruments, and what instruments cannot be told."""
        from krs.instruments import instrument

        twins = not spec.pairs and all(model.teach is not None for model in spec.models)
        for i, name in enumerate(options.instruments):
            try:
                if "retain" in instrument(name).needs and not twins:
                    yield (
                        ("instruments", i),
                        f"{name} needs a retain model, which cells of taught models have (models: teach:), and no "
                        "others: leave it out, or teach every model",
                    )
            except KrsError as reason:
                yield ("instruments", i), str(reason)
        if spec.chat_template_kwargs:
            yield (), "instruments take no arguments of the chat template: leave chat_template_kwargs or dissect out"

    def inputs(self, cell: Cell, spec: Spec, options: Any) -> dict[str, Any]:
        """What readings and verdicts follow from, too: versions of the instruments, thresholds and rules."""
        from krs.instruments import instrument
        from krs.instruments.verdict import RULES, thresholds

        told = {name: vars(threshold) for name, threshold in thresholds().items()}
        return super().inputs(cell, spec, options) | {
            "verdicts": digest_of([RULES, told]),
            "instruments": {name: instrument(name).version for name in options.instruments},
        }

    def memory(self, cell: Cell, options: Any) -> int | None:
        """Both models, and the retain model where there is one."""
        both, size = super().memory(cell, options), size_of(cell.vanilla)
        return both if cell.teach is None or both is None or size is None else both + size[1]

    def run(self, work: Work) -> str:
        """Write report.html, report.json and evidence.csv; readings are kept as they are made."""
        from krs.instruments import dissect

        place, options = work.upstream["prepare"], work.options
        others = place / "unrelated.txt"
        found = dissect(
            work.vanilla,
            work.unlearned,
            files.read_prompts(place / "target.txt")[: options.questions],
            retain=work.retain,
            unrelated=files.read_prompts(others) if others.read_text(encoding="utf-8").strip() else (),
            budget=None,
            only=options.instruments,
            nulls=options.nulls,
            chat=work.spec.chat,
            n_tokens=options.n_tokens,
            seed=options.seed,
            output_dir=work.folder,
            **dtype_of(work.spec),
        )
        table = found.evidence.assign(verdict=found.verdict.word).reset_index()
        write_text(work.folder / "evidence.csv", table.to_csv(index=False))
        told = {
            name: [reading.values.tolist(), {null: v.tolist() for null, v in reading.nulls.items()}]
            for name, reading in found.readings.items()
        }
        return digest_of([told, str(found.verdict)])
