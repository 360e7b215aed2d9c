"""The steps that measure a pair: `sweep`, `answers` and `drift`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Literal

from pydantic import Field

from krs import files
from krs.errors import KrsError
from krs.study.checkpoints import size_of
from krs.study.grid import Cell
from krs.study.manifest import digest_of
from krs.study.spec import Fault, Part, Spec
from krs.study.step import Step, Work, register
from krs.study.tables import written as csv_text
from krs.study.training import chat_of, dtype_of
from krs.writing import write_text


class Measuring(Step):
    """What those that measure have in common: they load both models."""

    needs: ClassVar[tuple[str, ...]] = ("prepare", "unlearn")

    def inputs(self, cell: Cell, spec: Spec, options: Any) -> dict[str, Any]:
        """Options, and how prompts are put."""
        return {**options.model_dump(), **chat_of(spec)}

    def memory(self, cell: Cell, options: Any) -> int | None:
        """Both models."""
        sizes = [size_of(name) for name in (cell.vanilla, cell.unlearned or cell.vanilla)]
        return None if None in sizes else sum(size[1] for size in sizes if size is not None)


class SweepOptions(Part):
    """As the arguments of `krs.sweep`; `questions` are scored of the concept's, all of them if not given."""

    settings: list[str] | None = None
    windows: int = Field(default=5, gt=0)
    n_tokens: int = Field(default=30, gt=0)
    scoring: Literal["next-token", "paper-code"] = "next-token"
    engine: Literal["auto", "wavefront", "plain"] = "auto"
    memory: int | float | str = "auto"
    measures: list[str] = Field(default=[])
    questions: int | None = Field(default=None, gt=0)


@register("sweep")
class Sweep(Measuring):
    """The Knowledge Recovery Score, window by window."""

    options = SweepOptions

    def check(self, spec: Spec, options: Any) -> Iterator[Fault]:
        """Settings, windows and measures, as `krs.sweep` looks at them."""
        from krs.metrics.measures import measures
        from krs.restore.plan import check_settings
        from krs.restore.windows import shape

        looks: dict[str, Callable[[Any], object]] = {"settings": check_settings, "windows": shape, "measures": measures}
        for name, look in looks.items():
            try:
                look(getattr(options, name))
            except KrsError as reason:
                yield (name,), str(reason)

    def inputs(self, cell: Cell, spec: Spec, options: Any) -> dict[str, Any]:
        """How much memory it may take changes nothing."""
        found = super().inputs(cell, spec, options)
        del found["memory"]
        return found

    def run(self, work: Work) -> str:
        """Write sweep.krs and krs.csv."""
        from krs.restore import sweep

        asked = files.questions(work.upstream["prepare"] / "target.txt", work.spec.chat)
        options = work.options.model_dump()
        result = sweep(
            work.vanilla,
            work.unlearned,
            asked[: options.pop("questions")],
            **options,
            chat_template_kwargs=work.spec.chat_template_kwargs,
            checkpoint=work.folder / "sweep.krs",
            **dtype_of(work.spec),
        )
        table = result.to_frame().to_csv(index=False)
        write_text(work.folder / "krs.csv", table)
        kept = [result.losses.restored.tolist(), result.losses.baseline.tolist(), result.losses.mask.tolist()]
        more = {name: result.table(name).to_csv() for name in result.measures}
        return digest_of([table, kept, result.token_ids, more])


class AnswersOptions(Part):
    """As the arguments of `krs.metrics.answers`; `unrelated`: so many of the unrelated questions, all if not given."""

    unrelated: int | None = Field(default=None, ge=0)
    n_tokens: int = Field(default=30, gt=0)
    bleu: Literal["sacrebleu", "paper-code"] = "sacrebleu"


@register("answers")
class AnswersStep(Measuring):
    """What both models say."""

    options = AnswersOptions

    def run(self, work: Work) -> str:
        """Write answers.json and answers.csv."""
        from krs.metrics import answers

        place, options = work.upstream["prepare"], work.options.model_dump()
        file = place / "unrelated.txt"
        others = files.questions(file, work.spec.chat) if file.read_text(encoding="utf-8").strip() else []
        found = answers(
            work.vanilla,
            work.unlearned,
            files.questions(place / "target.txt", work.spec.chat),
            others[: options.pop("unrelated")],
            **options,
            chat_template_kwargs=work.spec.chat_template_kwargs,
            checkpoint=work.folder / "answers.json",
            **dtype_of(work.spec),
        )
        table = csv_text(found.frame)
        write_text(work.folder / "answers.csv", table)
        return digest_of([table, found.token_ids])


@register("drift")
class DriftStep(Measuring):
    """How far the weights have moved."""

    def inputs(self, cell: Cell, spec: Spec, options: Any) -> dict[str, Any]:
        """Nothing but the models."""
        return dtype_of(spec)

    needs = ("unlearn",)
    version = 2

    def run(self, work: Work) -> str:
        """Write drift.csv (by component and layer) and components.csv."""
        from krs.metrics import drift

        found = drift(work.vanilla, work.unlearned, **dtype_of(work.spec))
        table = found.frame.to_csv(index=False)
        write_text(work.folder / "drift.csv", table)
        components = found.by_component().reset_index().to_csv(index=False)
        write_text(work.folder / "components.csv", components)
        return digest_of(table)
