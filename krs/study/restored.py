"""The step that hears what comes back: `restored`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from pydantic import Field

from krs import files
from krs.errors import KrsError
from krs.study.manifest import digest_of
from krs.study.measuring import Measuring
from krs.study.spec import Fault, Part, Spec
from krs.study.step import Work, register
from krs.study.tables import written as csv_text
from krs.study.training import dtype_of
from krs.writing import write_text


class RestoredOptions(Part):
    """`setting` is put back in the window in which the step `sweep` recovered most with it."""

    setting: str = "mlp_coef+attn_out"
    n_tokens: int = Field(default=30, gt=0)
    questions: int | None = Field(default=None, gt=0)


@register("restored")
class RestoredStep(Measuring):
    """What the unlearned model says with pieces of the vanilla one put back where the sweep recovered most."""

    options = RestoredOptions
    version = 2
    needs: ClassVar[tuple[str, ...]] = ("prepare", "unlearn", "sweep")

    def check(self, spec: Spec, options: Any) -> Iterator[Fault]:
        """The setting has to be one that is swept."""
        from krs.hooks import setting
        from krs.hooks.points import Setting
        from krs.restore.plan import check_settings

        try:
            wanted = setting(options.setting)
            found = check_settings((spec.steps.get("sweep") or {}).get("settings"))
        except KrsError as reason:
            yield ("setting",), str(reason)
            return
        swept = [s.name for s in found if isinstance(s, Setting)]
        if wanted.name not in swept:
            yield ("setting",), f"{options.setting!r} is not swept here: give one of {', '.join(swept)}"
        elif not wanted.has_layers or wanted.ends:
            yield ("setting",), f"{options.setting!r} is not in the layers, where windows are: give another setting"

    def run(self, work: Work) -> str:
        """Write restored.csv: an answer a question, and what was put back where. Nothing if the sweep has no score."""
        import pandas as pd

        from krs.generation import generate
        from krs.hooks import setting
        from krs.restore import load_result

        point, place = setting(work.options.setting), work.upstream["prepare"] / "target.txt"
        asked = files.questions(place, work.spec.chat)[: work.options.questions]
        best = load_result(work.upstream["sweep"] / "sweep.krs").best().loc[point.name]
        columns = {"question": files.read_prompts(place)[: work.options.questions]}
        if pd.isna(best.krs):
            write_text(work.folder / "restored.csv", "question,restored,setting,first_layer,last_layer\n")
            return digest_of([])
        first, last = int(best.first_layer), int(best.last_layer)
        said = generate(
            work.vanilla,
            work.unlearned,
            asked,
            restore=point.at(*range(first, last + 1)),
            n_tokens=work.options.n_tokens,
            chat_template_kwargs=work.spec.chat_template_kwargs,
            **dtype_of(work.spec),
        )
        where = {"setting": point.name, "first_layer": first, "last_layer": last}
        table = csv_text(pd.DataFrame({**columns, "restored": list(said), **where}))
        write_text(work.folder / "restored.csv", table)
        return digest_of([table, said.token_ids])
